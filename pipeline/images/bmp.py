"""The structure of a BMP file (BITMAPFILEHEADER, BITMAPINFOHEADER and later), and the indices of its pixels."""

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.images.header import Header

MASKS = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
"""Red, green and blue in a pixel of 32 bits, where a header writes them out; other masks are not read."""


class Layout(NamedTuple):
    """Where the pixels are."""

    start: int
    width: int
    height: int
    bits: int
    """Bits of a pixel: 1, 4 or 8 with a palette, 24 or 32 without."""
    upwards: bool
    """The first row is the lowest."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """RGB colours by index."""

    @property
    def stride(self) -> int:
        """Bytes of a row, padded to four."""
        return (self.width * self.bits + 31) // 32 * 4


def layout(data: bytes) -> Layout:
    """Where the pixels are. Raises ValueError for a damaged BMP, or for one of a form that is not read."""
    if len(data) < 54:
        raise ValueError(f"truncated BMP: ends after {len(data)} bytes, in its header")
    start, size, width, height, planes, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    colours = struct.unpack_from("<I", data, 46)[0]
    if size not in (40, 52, 56, 64, 108, 124):
        raise ValueError(f"BMP with a header of {size} bytes: save it as PNG")
    masked = bits == 32 and compression in (3, 6) and data[54:66] == MASKS
    if bits not in (1, 4, 8, 24, 32) or planes != 1 or not (compression == 0 or masked):
        raise ValueError(f"BMP of {bits} bits a pixel, compression {compression}: save it as PNG")
    table = 14 + size + (4 * (colours or 2**bits) if bits <= 8 else 0)
    rows = zip(data[14 + size : table : 4], data[15 + size : table : 4], data[16 + size : table : 4], strict=False)
    found = Layout(start, width, abs(height), bits, height > 0, tuple((red, green, blue) for blue, green, red in rows))
    if start < table or colours > 2 ** min(bits, 8):
        raise ValueError(f"damaged BMP: its pixels start at byte {start}, inside its header and palette of {table} bytes")
    if width > 0 and start + found.stride * found.height > len(data):
        raise ValueError(f"truncated BMP: {len(data)} bytes of {start + found.stride * found.height}")
    return found


def read_header(data: bytes) -> Header:
    """The header. Raises ValueError for a damaged BMP, or for one of a form that is not read."""
    found = layout(data)
    # A BMP has no other form of grey than a palette of greys.
    greys = [(grey, grey, grey) for grey in (i * 255 // (2 ** min(found.bits, 8) - 1) for i in range(len(found.palette)))]
    colours = "RGB" if found.bits > 8 else "grey" if list(found.palette) == greys else "palette"
    return Header("BMP", found.width, found.height, colours, min(found.bits, 8))


def palette(data: bytes) -> list[tuple[int, int, int]]:
    """RGB colours by index; none if there is no palette."""
    return list(layout(data).palette)


def indices(data: bytes) -> npt.NDArray[np.uint8]:
    """uint8[H, W] palette indices: OpenCV would give colours. The BMP must have at most 8 bits a pixel."""
    found = layout(data)
    rows = np.frombuffer(data, np.uint8, found.stride * found.height, found.start).reshape(found.height, found.stride)
    if found.bits < 8:
        bits = np.unpackbits(rows, axis=1).reshape(found.height, -1, found.bits)
        rows = np.packbits(bits, axis=2)[..., 0] >> np.uint8(8 - found.bits)
    rows = rows[:, : found.width]
    return np.ascontiguousarray(rows[::-1] if found.upwards else rows)
