"""The structure of a PNG file (www.w3.org/TR/png-3): chunks, their checksums, and the compressed pixels."""

import struct
import zlib
from collections.abc import Iterator, Sequence

from pipeline.images import tiff
from pipeline.images.deflate import inflated
from pipeline.images.header import Header

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""(first column, first row, column step, row step) of each pass of an interlaced PNG."""


def read_header(data: bytes) -> Header:
    """The header, after every chunk's checksum was compared. Raises ValueError for a damaged PNG."""
    found, orientation = {"PLTE": False, "IDAT": False}, 1
    for kind, start, end in chunks(data):
        if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"damaged PNG: chunk {kind!r} at byte {start - 8} fails its checksum")
        if (kind == "IHDR") != (start == 16) or (kind == "IHDR" and end != 29):
            raise ValueError(f"damaged PNG: chunk {kind!r} of {end - start} bytes at byte {start - 8}")
        found[kind] = True
        if kind == "eXIf":
            orientation = tiff.orientation(data[start:end])
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    if bits not in DEPTHS.get(colour, ()) or any(data[26:28]) or data[28] > 1:
        raise ValueError(f"damaged PNG: its header says colour type {colour} of {bits} bits")
    if not found["IDAT"] or (colour == 3 and not found["PLTE"]):
        raise ValueError("damaged PNG: without pixels or without its palette")
    return Header("PNG", width, height, COLOURS[colour], bits, orientation)


def check_pixels(data: bytes) -> None:
    """Raises ValueError unless the compressed pixels are whole: as many bytes as the header says, and their checksum."""
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    expected = 0
    for left, top, across, down in PASSES if data[28] else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits * CHANNELS[colour] + 7) // 8)
    length = inflated("PNG", (data[start:end] for kind, start, end in chunks(data) if kind == "IDAT"), expected)
    if length != expected:
        state = f"{length} bytes" if length < expected else "more bytes"
        raise ValueError(f"damaged PNG: its pixels are {state} uncompressed, its header needs {expected}")


def chunks(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(type, start, end) of each chunk's content, up to IEND. Raises ValueError if the file ends before."""
    place, kind = len(SIGNATURE), ""
    while kind != "IEND":
        start = place + 8
        end = start + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : start].decode("latin-1")
        if end + 4 > len(data):
            raise ValueError(f"truncated PNG: ends after {len(data)} bytes, before its IEND")
        yield kind, start, end
        place = end + 4


def palette(data: bytes) -> list[tuple[int, int, int]]:
    """RGB colours by index; none if there is no palette."""
    start, end = next(((start, end) for kind, start, end in chunks(data) if kind == "PLTE"), (0, 0))
    return [(data[i], data[i + 1], data[i + 2]) for i in range(start, end - 2, 3)]


def as_grey(data: bytes) -> bytes:
    """The PNG of one channel or with a palette as a grey one, whose pixels are the indices of the palette.

    OpenCV would turn the palette into colours. Only the header, the pixels and the end are kept (sections 5.3 and 11.2).
    """
    return _with_colour_type(0, data)


def with_palette(data: bytes, colors: Sequence[tuple[int, int, int]]) -> bytes:
    """The 8-bit grey PNG with a palette of up to 256 RGB colours, whose indices are the grey values.

    Pillow reads the indices, OpenCV the colours. Every grey value must have a colour.
    """
    return _with_colour_type(3, data, _chunk(b"PLTE", bytes(value for color in colors for value in color)))


def _with_colour_type(colour: int, data: bytes, palette: bytes = b"") -> bytes:
    kept = [data[start - 8 : end + 4] for kind, start, end in chunks(data) if kind in ("IDAT", "IEND")]
    # Only the colour type changes; size, depth, compression, filter and interlacing are kept.
    header = _chunk(b"IHDR", data[16:25] + bytes([colour]) + data[26:29])
    return b"".join([SIGNATURE, header, palette, *kept])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
