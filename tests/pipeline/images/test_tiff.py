"""TIFF files of every form that is read, and the sentence for each that is not."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import codec
from tests.support.pictures import saved, smooth, tiff

RANDOM = np.random.default_rng(0)
COLOUR = smooth(RANDOM)
IDS = RANDOM.integers(0, 6, COLOUR.shape[:2], dtype=np.uint8)
TABLE = RANDOM.integers(0, 2**16, 768).tolist()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("tile", [0, 16])
def test_each_arrangement_of_the_pixels_is_read(order: str, big: bool, tile: int) -> None:
    forms: dict[str, Any] = {"order": order, "big": big, "tile": tile}
    for planes in (False, True):
        data = tiff(COLOUR, 2, planes=planes, **forms)
        codec.check_image(data)
        assert np.array_equal(codec.decode_image(data), COLOUR)
    for photometric, tags in ((1, {}), (3, {"t320": TABLE})):
        data = tiff(IDS, photometric, **forms, **tags)
        codec.check_encoding(data)
        assert np.array_equal(codec.decode_label(data), IDS)


@pytest.mark.parametrize("width", [48, 50])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiles_are_read_as_they_are_stored_or_refused(width: int, samples: int, wide: bool, photometric: int) -> None:
    """OpenCV mistakes some tiles that reach over the right side."""
    stored = RANDOM.integers(0, 256, (40, width, samples), dtype=np.uint8)
    shown = 255 - stored if photometric == 0 and samples == 1 else stored
    if samples == 2:
        shown = shown[..., :1]
    pixels = stored.astype(np.uint16) * 257 if wide else stored
    tags = {"t338": [2]} if samples in (2, 4) else {}
    kind = 2 if samples > 2 else 1 if samples == 2 else photometric
    data = tiff(pixels[..., 0] if samples == 1 else pixels, kind, tile=16, **tags)
    if width == 50 and (samples == 2 or (samples == 1 and wide)):
        with pytest.raises(ValueError, match=r"TIFF of tiles that reach over its right side, .*: save it without tiles"):
            codec.check_image(data)
    else:
        codec.check_image(data)
        assert np.array_equal(codec.decode_image(data), np.broadcast_to(shown[..., :3], (40, width, 3)))


@pytest.mark.parametrize("extra", [[0], [1], [2]])
def test_alpha_is_dropped_and_the_colours_stay(extra: list[int]) -> None:
    data = tiff(np.dstack([COLOUR, IDS]), 2, t338=extra)
    codec.check_image(data)
    assert np.array_equal(codec.decode_image(data), COLOUR)


def test_overviews_of_a_page_are_no_pages() -> None:
    """As in cloud-optimised GeoTIFFs."""
    page, small = Image.fromarray(COLOUR), Image.fromarray(COLOUR[::2, ::2])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = saved(page, "tiff", save_all=True, append_images=[small])
    codec.check_image(data)
    assert np.array_equal(codec.decode_image(data), COLOUR)
    small.encoderinfo = {}
    with pytest.raises(ValueError, match="TIFF of several pages: save each page as a file of its own"):
        codec.check_image(saved(page, "tiff", save_all=True, append_images=[small]))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (tiff(COLOUR, 2, t259=[7]), "TIFF with compression 7: save it with LZW or Deflate"),
        (tiff(COLOUR, 2, tile=16, t259=[1]), "TIFF of tiles without compression: save it with LZW or Deflate"),
        (tiff(COLOUR, 2, t274=[6]), "TIFF with orientation tag 6: save it upright, without the tag"),
        (tiff(np.dstack([COLOUR, IDS, IDS]), 2, t338=[0, 0]), "TIFF of 5 channels, colours 2: save it as grey, RGB or palette"),
        (tiff(COLOUR, 8), "TIFF of 3 channels, colours 8: save it as grey, RGB or palette"),
        (tiff(IDS.astype(np.float32), 1, t339=[3]), r"TIFF of \[32\] bits a channel, sample format 3: save it as whole numbers"),
        (tiff(IDS.astype(np.int8), 1, t339=[2]), r"TIFF of \[8\] bits a channel, sample format 2: save it as whole numbers"),
        (tiff(COLOUR, 2, t266=[2]), "TIFF with reversed bits"),
        (tiff(COLOUR, 2, t257=[40]), "damaged TIFF: 8 places and 8 lengths of 8 parts|damaged TIFF: part 8 of 8 has 132 of"),
        (tiff(COLOUR, 2)[:700], "truncated TIFF"),
        (b"II*\0" + b"\xff" * 30, "truncated TIFF"),
        (b"MM\0+\0\x08\0\0" + b"\xff" * 30, "truncated TIFF"),
    ],
)
def test_a_form_that_is_not_read_is_named_with_its_fix(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        codec.check_image(data)
