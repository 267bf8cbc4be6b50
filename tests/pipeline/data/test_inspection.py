"""Inspection of an image and its label: accepted pairs, and faults that name the file."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.classes import CAMVID
from pipeline.data.inspection import faults_of, inspect
from pipeline.images import codec
from pipeline.images.codec import check_encoding
from tests.support.pictures import saved

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (24, 32, 3), dtype=np.uint8)
IMAGE = codec.encode_png(PIXELS)
IDS = RANDOM.integers(0, 12, (24, 32), dtype=np.uint8)
LABEL = codec.encode_png(IDS)
URLS = "train/a.png", "trainannot/a.png"


def flat(height: int, width: int, value: int) -> bytes:
    return codec.encode_png(np.full((height, width), value, np.uint8))


def jpeg(pixels: codec.UInt8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def png(depth: int, kind: int, content: bytes) -> bytes:
    """A PNG of 2 x 2 pixels of any bit depth and colour type; a palette of four colours for type 3."""
    header = (2).to_bytes(4, "big") * 2 + bytes([depth, kind, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"PLTE", bytes(range(12))), (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
    parts = [n + d for n, d in chunks if n != b"PLTE" or kind == 3]
    return b"\x89PNG\r\n\x1a\n" + b"".join((len(p) - 4).to_bytes(4, "big") + p + zlib.crc32(p).to_bytes(4, "big") for p in parts)


SMALL = flat(2, 2, 7)


@pytest.mark.parametrize(
    ("image", "label", "fault"),
    [
        (IMAGE[:-20], LABEL, f"train/a.png: truncated PNG: ends after {len(IMAGE) - 20} bytes"),
        (IMAGE[: len(IMAGE) // 2], LABEL, "train/a.png: truncated PNG"),
        (IMAGE[:10], LABEL, "train/a.png: truncated PNG: ends after 10 bytes, before its IEND"),
        (IMAGE[:300] + b"\0\0" + IMAGE[302:], LABEL, "train/a.png: damaged PNG: chunk 'IDAT'"),
        (IMAGE[:17] + b"\1" + IMAGE[18:], LABEL, "train/a.png: damaged PNG: chunk 'IHDR' at byte 8 fails its checksum"),
        (b"", LABEL, "train/a.png: empty file: copy it again"),
        (b"GIF89a", LABEL, "train/a.png: GIF: convert it to PNG"),
        (jpeg(PIXELS)[:-2], LABEL, "train/a.png: truncated JPEG: no end marker"),
        (b"\xff\xd8 no image \xff\xd9", LABEL, "train/a.png: damaged JPEG: no marker at byte 2"),
        (IMAGE, LABEL[:-1], "trainannot/a.png: truncated PNG"),
        (IMAGE, b"", "trainannot/a.png: empty file: copy it again"),
        (IMAGE, flat(32, 24, 0), "trainannot/a.png: label is 24 x 32 pixels, its image 32 x 24 (train/a.png)"),
        (IMAGE, flat(24, 32, 17), "trainannot/a.png: label ids outside the map: 17 (768 pixels); legal: 0, 1, 2, 3"),
        (IMAGE, jpeg(IDS), "trainannot/a.png: a label must be a PNG, TIFF or BMP: JPEG changes the class ids"),
        (IMAGE, IMAGE, "trainannot/a.png: a label is an 8-bit image of one channel or a palette PNG, found RGB of 8 bits"),
        (SMALL, png(8, 6, bytes(18)), "trainannot/a.png: a label is an 8-bit image of one channel or a palette PNG, found RGBA"),
        (SMALL, png(16, 0, b"\0\0\1\0\2\0\0\1\0\2"), "trainannot/a.png: a label is an 8-bit image of one channel"),
        (SMALL, png(8, 3, b"\0\1\2\0"), "trainannot/a.png: damaged PNG: its pixels are 4 bytes uncompressed, its header needs 6"),
        (png(8, 2, b"\0\1\2\3\4\5\6"), SMALL, "train/a.png: damaged PNG: its pixels are 7 bytes"),
    ],
)  # fmt: skip
def test_each_fault_of_a_pair_names_the_file(image: bytes, label: bytes, fault: str) -> None:
    faults = inspect(*URLS, image, label, CAMVID.label_map)[2]
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_every_length_that_a_file_is_cut_to_is_found() -> None:
    for whole in (LABEL, jpeg(PIXELS)):
        for length in range(len(whole)):
            with pytest.raises(ValueError, match=r"empty file|truncated|damaged|no image"):
                check_encoding(whole[:length])


def test_faults_of_both_files_are_reported_together() -> None:
    first, second = inspect(*URLS, IMAGE[:-9], LABEL[:-9], CAMVID.label_map)[2]
    assert first.startswith("train/a.png: truncated")
    assert second.startswith("trainannot/a.png: truncated")
    first, second = inspect(*URLS, IMAGE, flat(3, 4, 200), CAMVID.label_map)[2]
    assert "label is 4 x 3 pixels" in first
    assert "outside the map: 200 (12 pixels)" in second


def test_a_photograph_in_the_place_of_a_label_is_called_so() -> None:
    ids = np.arange(768, dtype=np.uint16).reshape(24, 32).astype(np.uint8)
    (fault,) = inspect(*URLS, IMAGE, codec.encode_png(ids), CAMVID.label_map)[2]
    assert fault.startswith("trainannot/a.png: label ids outside the map: 12 (3 pixels), 13 (3 pixels)")
    assert fault.endswith(
        " and 234 more; legal: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11: exchange images and masks if they are swapped, or export "
        "the mask again as PNG, without smoothing, or list the ids in classes.yaml"
    )


def test_a_label_of_another_size_has_its_fix() -> None:
    (turned,) = inspect(*URLS, IMAGE, flat(32, 24, 0), CAMVID.label_map)[2]
    assert turned.endswith(": its sides are exchanged: turn or transpose it")
    (half,) = inspect(*URLS, IMAGE, flat(12, 16, 0), CAMVID.label_map)[2]
    assert half.endswith(": export it again in the size of the image")


@pytest.mark.parametrize(
    ("size", "orientation", "fault"),
    [
        ((24, 32), 6, None),  # the sizes tell that the label lies on the stored pixels
        ((24, 32), 1, None),
        (
            (32, 24),
            6,
            "train/a.jpg: orientation tag 6: its label was drawn on the turned view, training reads the pixels as stored",
        ),
        ((32, 24), 3, "trainannot/a.png: label is 24 x 32 pixels, its image 32 x 24 (train/a.jpg)"),
        ((32, 24), 1, "trainannot/a.png: label is 24 x 32 pixels, its image 32 x 24 (train/a.jpg)"),
        ((24, 32), 3, "train/a.jpg: orientation tag 3: viewers show it turned or mirrored, training reads the pixels as stored"),
        ((24, 32), 2, "train/a.jpg: orientation tag 2: viewers show it turned or mirrored"),
    ],
)
@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_a_label_that_may_lie_on_the_turned_view_is_a_fault(
    size: tuple[int, int], orientation: int, fault: str | None, form: str
) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    found = inspect("train/a.jpg", URLS[1], saved(PIXELS, form, exif=tags), flat(*size, 0), CAMVID.label_map)[2]
    assert [one[: len(fault or "")] for one in found] == ([fault] if fault else [])
    if fault and "orientation" in fault:
        assert "turn the pixels (`exiftran -ai FILE` for JPEG, else `magick mogrify -auto-orient FILE`)" in found[0]


def test_a_square_image_with_a_tag_is_a_fault_unless_its_label_has_the_same_tag() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    image, square = saved(PIXELS[:24, :24], "jpeg", exif=tags), np.zeros((24, 24), np.uint8)
    (fault,) = inspect(*URLS, image, saved(square, "png"), CAMVID.label_map)[2]
    assert fault.startswith("train/a.png: orientation tag 6: viewers show it turned")
    assert fault.endswith("or delete the tag (`exiftool -Orientation= FILE`) if the label lies on the stored pixels")
    assert inspect(*URLS, image, saved(square, "png", exif=tags), CAMVID.label_map)[2] == []
    tags[0x0112] = 8
    (fault,) = inspect(*URLS, image, saved(square, "png", exif=tags), CAMVID.label_map)[2]
    assert fault.startswith("trainannot/a.png: orientation tag 8, but 6 in its image (train/a.png): turn the pixels")


@pytest.mark.parametrize("kind", [KeyError("x"), MemoryError(), OverflowError("too large")])
def test_an_exception_of_any_type_is_the_fault_of_its_file(kind: Exception) -> None:
    faults: list[str] = []
    with faults_of("train/a.png", faults):
        raise kind
    assert faults == [f"train/a.png: cannot be checked: {type(kind).__name__}: {kind}"]


@pytest.mark.parametrize("image", [IMAGE, jpeg(PIXELS), jpeg(PIXELS) + b"\0\0", flat(24, 32, 9)])
def test_a_sound_pair_has_size_and_counts(image: bytes) -> None:
    size, counts, faults = inspect(*URLS, image, LABEL, CAMVID.label_map)
    assert (size, faults) == ((24, 32), [])
    assert (counts.dtype, counts.tolist()) == (np.int64, np.bincount(IDS.ravel(), minlength=256).tolist())


@pytest.mark.parametrize(
    "label",
    [
        png(8, 3, b"\0\1\2\0\3\0"),
        png(2, 3, b"\0\x60\0\xc0"),  # 01 10, 11 00
        png(8, 0, b"\0\1\2\0\3\0"),
        png(4, 0, b"\0\x12\0\x30"),
    ],
)
def test_a_label_counts_by_its_palette_indices_or_values(label: bytes) -> None:
    size, counts, faults = inspect(*URLS, SMALL, label, CAMVID.label_map)
    assert (size, counts[:5].tolist(), faults) == ((2, 2), [1, 1, 1, 1, 0], [])
