"""BMP files: the stored indices of each depth, and the sentence for a form that is not read."""

import struct

import numpy as np
import pytest

from pipeline.images import codec
from tests.support.pictures import saved, smooth

COLOUR = smooth(np.random.default_rng(0), 9, 13)
BMP = saved(COLOUR, "bmp")


def bmp(ids: np.typing.NDArray[np.uint8], bits: int, *, upwards: bool = True) -> bytes:
    """A BMP with a palette of random colours and these indices."""
    rows = [np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes() for row in ids]
    stride = (ids.shape[1] * bits + 31) // 32 * 4
    palette = np.random.default_rng(1).bytes(4 * 2**bits)
    height = len(ids) if upwards else -len(ids)
    header = struct.pack("<IiiHHIIiiII", 40, ids.shape[1], height, 1, bits, 0, 0, 0, 0, 0, 0)
    start = 14 + len(header) + len(palette)
    body = b"".join(row.ljust(stride, b"\0") for row in (rows[::-1] if upwards else rows))
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("upwards", [True, False])
@pytest.mark.parametrize("width", [1, 7, 32])
def test_a_label_has_the_indices_of_its_palette(bits: int, upwards: bool, width: int) -> None:
    ids = np.random.default_rng(0).integers(0, 2**bits, (5, width), dtype=np.uint8)
    data = bmp(ids, bits, upwards=upwards)
    codec.check_encoding(data)
    assert np.array_equal(codec.decode_label(data), ids)
    assert codec.decode_image(data).shape == (5, width, 3)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (BMP[:40], "truncated BMP: ends after 40 bytes, in its header"),
        (BMP[:-1], f"truncated BMP: {len(BMP) - 1} bytes of {len(BMP)}"),
        (BMP[:30] + b"\1" + BMP[31:], "BMP of 24 bits a pixel, compression 1: save it as PNG"),
        (BMP[:28] + b"\x10" + BMP[29:], "BMP of 16 bits a pixel, compression 0: save it as PNG"),
        (BMP[:10] + b"\4\0" + BMP[12:], "damaged BMP: its pixels start at byte 4, inside its header"),
    ],
)
def test_a_form_that_is_not_read_is_named_with_its_fix(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        codec.check_image(data)
