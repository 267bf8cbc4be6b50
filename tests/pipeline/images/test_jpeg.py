"""The walk through a JPEG: bytes behind its end are not read, markers inside its segments are no end, missing parts are found."""

import numpy as np
import pytest
from PIL import Image

from pipeline.images import codec
from pipeline.images.jpeg import walk
from tests.support.pictures import decoded, saved, smooth

COLOUR = smooth(np.random.default_rng(0))
JPEG = saved(COLOUR, "jpeg")
PROGRESSIVE = saved(COLOUR, "jpeg", progressive=True)
SMALL = saved(COLOUR[:16, :16], "jpeg")


def exif(orientation: int, more: bytes = b"") -> bytes:
    """EXIF data with this orientation tag, followed by other bytes, such as a thumbnail."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes() + more


@pytest.mark.parametrize(
    "tail",
    [
        b"\n",
        bytes(40),
        b"\xff" * 13,
        b"SEFH\0\1\2\3 vendor \xff\xd8 trailer SEFT",
        b"\0\0\0\x18ftypmp42" + bytes(range(256)),
        SMALL,
        JPEG[: len(JPEG) // 2],
    ],
)
@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, saved(COLOUR, "jpeg", restart_marker_blocks=1)])
def test_bytes_behind_the_end_are_not_the_pictures(data: bytes, tail: bytes) -> None:
    assert codec.check_image(data + tail) == codec.check_image(data)
    assert np.array_equal(codec.decode_image(data + tail), decoded(data))


def test_several_pictures_in_a_file_are_the_first() -> None:
    """MPO, as cameras with two lenses write it."""
    pages = Image.fromarray(COLOUR)
    data = saved(pages, "mpo", save_all=True, append_images=[Image.fromarray(COLOUR[::-1])])
    assert codec.check_image(data).width == COLOUR.shape[1]
    assert np.array_equal(codec.decode_image(data), decoded(JPEG))


def test_a_thumbnail_in_a_segment_is_no_end() -> None:
    data = saved(COLOUR, "jpeg", exif=exif(1, SMALL))
    codec.check_image(data)
    start = data.index(SMALL) + len(SMALL)  # its end marker is the last thing before the cut
    for cut in (start, start + 5, len(data) - 300, len(data) - 2):
        with pytest.raises(ValueError, match=f"truncated JPEG: no end marker in {cut} bytes"):
            codec.check_image(data[:cut])


def test_every_length_that_a_jpeg_is_cut_to_is_found() -> None:
    for data in (SMALL, saved(COLOUR[:16, :16], "jpeg", progressive=True)):
        for length in range(2, len(data)):
            with pytest.raises(ValueError, match="truncated JPEG"):
                walk(data[:length])


def test_the_missing_scans_of_a_progressive_jpeg_are_found() -> None:
    """A download that broke off and was closed by an end marker: a decoder shows it coarse and says nothing."""
    scans = [place for place in range(len(PROGRESSIVE)) if PROGRESSIVE[place : place + 2] == b"\xff\xda"]
    tables = [PROGRESSIVE.rindex(b"\xff\xc4", 0, place) for place in scans]
    for end in tables[1:]:
        with pytest.raises(ValueError, match="truncated JPEG: scans are missing"):
            walk(PROGRESSIVE[:end] + b"\xff\xd9")


def test_a_second_picture_that_begins_before_the_first_has_ended_is_damage() -> None:
    with pytest.raises(ValueError, match=r"damaged JPEG: marker FF D8 at byte \d+, in the middle of the picture"):
        codec.check_image(JPEG[:-400] + JPEG)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_is_read(orientation: int) -> None:
    header = codec.check_image(saved(COLOUR, "jpeg", exif=exif(orientation)))
    assert header.orientation == orientation
    assert header.upright == (COLOUR.shape[:2] if orientation < 5 else COLOUR.shape[1::-1])


def test_damaged_exif_data_is_no_orientation() -> None:
    for data in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0" + bytes(30), exif(9)):
        assert codec.check_image(saved(COLOUR, "jpeg", exif=data)).orientation == 1
