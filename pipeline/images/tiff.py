"""The structure of a TIFF file (TIFF 6.0; BigTIFF) and of EXIF data, which has the same form: directories of tags."""

import struct
from typing import NamedTuple

from pipeline.images.deflate import inflated
from pipeline.images.header import Header

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TYPES = {3: "H", 4: "I", 13: "I", 16: "Q"}
"""Numbers of the whole-number types; other values are not read."""
COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32773: "PackBits", 32946: "Deflate"}
DEFLATE = (8, 32946)
COLOURS = {(0, 1): "inverted grey", (1, 1): "grey", (1, 2): "grey and alpha", (2, 3): "RGB", (2, 4): "RGBA", (3, 1): "palette"}
"""(photometric interpretation, samples per pixel) -> its name."""
PALETTE_SIZES = {1: 6, 8: 768, 16: 196608}
"""Bits of a pixel -> numbers in its palette."""
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANAR, PALETTE, EXTRA, FORMAT = SHAPE = (
    256, 257, 258, 259, 262, 274, 277, 284, 320, 338, 339,
)  # fmt: skip
SUBFILE, FILL_ORDER, STRIPS, ROWS, STRIP_BYTES, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = PLACES = (
    254, 266, 273, 278, 279, 322, 323, 324, 325,
)  # fmt: skip


class Directory(NamedTuple):
    """One directory of tags."""

    tags: dict[int, tuple[int, ...]]
    """Values of each tag; none of one that does not hold whole numbers."""
    places: dict[int, tuple[int, str]]
    """Where in the file a tag's values start, and their type as struct names it."""
    following: int
    """Place of the next directory; 0 if this is the last."""

    def one(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return (self.tags.get(tag) or (default,))[0]


def directory(data: bytes, place: int | None = None) -> Directory:
    """The directory at a place, or the first. Raises ValueError if it does not lie in the data."""
    order, big = _order(data)
    count, offset, entry, room = ("Q", "Q", 20, 8) if big else ("H", "I", 12, 4)
    try:
        if place is None:
            (place,) = struct.unpack_from(order + offset, data, 8 if big else 4)
        (number,) = struct.unpack_from(order + count, data, place)
        start = place + struct.calcsize(count)
        tags: dict[int, tuple[int, ...]] = {}
        places: dict[int, tuple[int, str]] = {}
        if start + number * entry > len(data):
            raise ValueError(f"truncated TIFF: its directory at byte {place} lies behind its end at {len(data)}")
        for at in range(start, start + number * entry, entry):
            tag, kind = struct.unpack_from(order + "HH", data, at)
            (length,) = struct.unpack_from(order + offset, data, at + 4)
            if kind not in TYPES:
                tags.setdefault(tag, ())
            elif tag not in tags:
                size = struct.calcsize(TYPES[kind]) * length
                values = at + entry - room
                if size > room:
                    (values,) = struct.unpack_from(order + offset, data, values)
                if values + size > len(data):
                    raise ValueError(f"truncated TIFF: tag {tag} lies behind its end at byte {len(data)}")
                tags[tag] = struct.unpack_from(f"{order}{length}{TYPES[kind]}", data, values)
                places[tag] = values, TYPES[kind]
        (following,) = struct.unpack_from(order + offset, data, start + number * entry)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"truncated TIFF: ends after {len(data)} bytes, before its directory") from error
    return Directory(tags, places, following)


def orientation(exif: bytes) -> int:
    """The orientation tag of EXIF data, 1 to 8. 1 if there is none, or if the data cannot be read, as in viewers."""
    try:
        found = directory(exif).one(ORIENTATION, 1)
    except ValueError:
        return 1
    return found if 1 <= found <= 8 else 1


def read_header(data: bytes) -> Header:
    """The header of the only page. Raises ValueError for a damaged TIFF, or for one of a form that is not read."""
    page = directory(data)
    bits = set(page.tags.get(BITS, (1,)))
    colour, samples, compression = page.one(PHOTOMETRIC, -1), page.one(SAMPLES, 1), page.one(COMPRESSION, 1)
    tiled = bool(page.one(TILE_WIDTH))
    faults = [
        (pages(data, page) > 1, "of several pages: save each page as a file of its own"),
        (() in [page.tags.get(tag) for tag in SHAPE + PLACES], "with tags that hold no numbers: save it again"),
        (compression not in COMPRESSIONS, f"with compression {compression}: save it with LZW or Deflate"),
        # OpenCV 5.0 refuses such tiles.
        (compression == 1 and tiled, "of tiles without compression: save it with LZW or Deflate"),
        (
            # OpenCV 5.0 takes the pixels of such tiles from other places.
            tiled and page.one(WIDTH) % page.one(TILE_WIDTH) > 0 and colour < 2 and (samples == 2 or max(bits) == 16),
            "of tiles that reach over its right side, in grey of 16 bits or with alpha: save it without tiles",
        ),
        (page.one(ORIENTATION, 1) != 1, f"with orientation tag {page.one(ORIENTATION)}: save it upright, without the tag"),
        (
            (colour, samples) not in COLOURS,
            f"of {samples} channels, colours {colour}: save it as grey, RGB or palette, of 8 bits",
        ),
        (
            len(bits) != 1
            or not bits <= {1, 8, 16}
            or (bits == {1} and samples > 1)
            or not set(page.tags.get(FORMAT, ())) <= {1},
            f"of {sorted(bits)} bits a channel, sample format {page.one(FORMAT, 1)}: save it as whole numbers of 8 bits",
        ),
        (
            colour == 3 and len(page.tags.get(PALETTE, ())) != PALETTE_SIZES.get(page.one(BITS, 1)),
            "without the colours of its palette: save it again",
        ),
        (page.one(FILL_ORDER, 1) != 1, "with reversed bits (fill order 2): save it with fill order 1"),
        (page.one(PLANAR, 1) not in (1, 2), f"with planar configuration {page.one(PLANAR)}: save it with 1"),
    ]
    for found, fault in faults:
        if found:
            raise ValueError(f"TIFF {fault}")
    return Header("TIFF", page.one(WIDTH), page.one(HEIGHT), COLOURS[colour, samples], min(bits))


def pages(data: bytes, page: Directory) -> int:
    """Number of pictures, without reduced copies (overviews) and transparency masks."""
    number, seen = 1, {0}
    while page.following not in seen:
        seen.add(page.following)
        page = directory(data, page.following)
        number += not page.one(SUBFILE) & 0b101
    return number


def check_pixels(data: bytes) -> None:
    """Raises ValueError unless every strip or tile lies in the file and is whole, as far as its compression tells."""
    page = directory(data)
    width, height, samples, bits = page.one(WIDTH), page.one(HEIGHT), page.one(SAMPLES, 1), page.one(BITS, 1)
    planes, together = (samples, 1) if page.one(PLANAR, 1) == 2 else (1, samples)
    rows = min(page.one(ROWS, height) or height, height)
    if across := page.one(TILE_WIDTH):
        rows = max(1, page.one(TILE_HEIGHT))
        number = -(-width // across) * -(-height // rows)
        starts, lengths = page.tags.get(TILES, ()), page.tags.get(TILE_BYTES, ())
    else:
        number = -(-height // rows)
        starts, lengths = page.tags.get(STRIPS, ()), page.tags.get(STRIP_BYTES, ())
    if not len(starts) == len(lengths) == number * planes:
        raise ValueError(f"damaged TIFF: {len(starts)} places and {len(lengths)} lengths of {number * planes} parts")
    line = ((across or width) * together * bits + 7) // 8
    for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        part = f"part {index + 1} of {len(starts)}"
        if start + length > len(data):
            raise ValueError(f"truncated TIFF: {part} ends at byte {start + length} of {len(data)}")
        needed = line * (rows if across else min(rows, height - index % number * rows))
        if page.one(COMPRESSION, 1) in DEFLATE:  # libtiff does not look at the checksum
            length = inflated("TIFF", [data[start : start + length]], needed)
        if not length or (length < needed and page.one(COMPRESSION, 1) in (1, *DEFLATE)):
            raise ValueError(f"damaged TIFF: {part} has {length} of {needed} bytes")


def palette(data: bytes) -> list[tuple[int, int, int]]:
    """RGB colours by index, in 8 of their 16 bits; none if there is no palette."""
    numbers = directory(data).tags.get(PALETTE, ())
    wide = max(numbers, default=0) > 255  # some writers fill only 8 of the bits, as libtiff knows too
    bytes_of = [number >> 8 if wide else number for number in numbers]
    third = len(bytes_of) // 3
    return list(zip(bytes_of[:third], bytes_of[third : 2 * third], bytes_of[2 * third :], strict=True))


def as_grey(data: bytes) -> bytes:
    """The TIFF with a palette as a grey one, whose pixels are the indices of the palette."""
    return _with(data, PHOTOMETRIC, {3: 1})


def without_alpha(data: bytes) -> bytes:
    """The TIFF with its alpha declared as multiplied already: OpenCV would multiply the colours by it."""
    return _with(data, EXTRA, {2: 1})


def _with(data: bytes, tag: int, changes: dict[int, int]) -> bytes:
    page, (order, _) = directory(data), _order(data)
    if page.one(tag) not in changes:
        return data
    place, kind = page.places[tag]
    value = struct.pack(order + kind, changes[page.one(tag)])
    return data[:place] + value + data[place + len(value) :]


def _order(data: bytes) -> tuple[str, bool]:
    """struct's sign of the byte order, and whether it is a BigTIFF."""
    if data[:4] not in SIGNATURES:
        raise ValueError("not a TIFF: its first bytes say no byte order")
    return "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
