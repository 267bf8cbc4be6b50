"""PNG files: pixels as many as the header says, checksums, orientation."""

import numpy as np
import pytest
from PIL import Image

from pipeline.images import codec
from tests.support.pictures import saved, smooth, with_checksums

COLOUR = smooth(np.random.default_rng(0))
PNG = saved(COLOUR, "png")


@pytest.mark.parametrize(("place", "value"), [(16 + 7, 37), (16 + 3, 45), (16 + 9, 6), (16 + 12, 1)])
def test_a_header_that_does_not_fit_the_pixels_is_damage(place: int, value: int) -> None:
    """Width, height, colours and interlacing, under checksums that match."""
    changed = with_checksums(PNG[:place] + bytes([value]) + PNG[place + 1 :])
    with pytest.raises(ValueError, match=r"damaged PNG: its pixels are .* uncompressed, its header needs"):
        codec.check_encoding(changed)


def test_damage_in_the_compressed_pixels_under_a_matching_checksum_is_found() -> None:
    place = PNG.index(b"IDAT") + 600
    with pytest.raises(ValueError, match="damaged PNG: its pixels: zlib"):
        codec.check_encoding(with_checksums(PNG[:place] + bytes(9) + PNG[place + 9 :]))
    start = PNG.index(b"IDAT")
    short = PNG[: start - 4] + (100).to_bytes(4, "big") + PNG[start : start + 104] + bytes(4) + PNG[-12:]
    with pytest.raises(ValueError, match="damaged PNG: its pixels: the zlib stream ends too early"):
        codec.check_encoding(with_checksums(short))


def test_the_orientation_tag_is_read() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    assert codec.check_image(saved(COLOUR, "png", exif=tags)).orientation == 6
    assert codec.check_image(saved(COLOUR, "webp", exif=tags)).orientation == 6
