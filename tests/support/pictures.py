"""Image files in every form that is read, written by Pillow or byte by byte, and their mutations."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]


def saved(picture: Image.Image | UInt8, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, form, **options)
    return file.getvalue()


def decoded(data: bytes) -> UInt8:
    """uint8[H, W, 3] by Pillow."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture.convert("RGB"))


def indices(data: bytes) -> UInt8:
    """uint8[H, W] by Pillow: values, or indices of the palette."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture).astype(np.uint8)


def smooth(random: np.random.Generator, height: int = 36, width: int = 44) -> UInt8:
    """uint8[H, W, 3] of slow changes and some noise, so that JPEG data have many different codes."""
    small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return (np.array(small) // 2 + random.integers(0, 60, (height, width, 3))).astype(np.uint8)


def palette_of(ids: UInt8, random: np.random.Generator) -> Image.Image:
    """The ids as indices of random colours."""
    picture = Image.fromarray(ids)
    picture.putpalette(random.integers(0, 256, 768).tolist())
    return picture


def forms(random: np.random.Generator) -> dict[str, tuple[str, bytes]]:
    """name -> (`image` or `label`, file)."""
    colour = smooth(random)
    grey, ids = Image.fromarray(colour[..., 0]), random.integers(0, 6, (9, 11), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    palette, bits, alpha = palette_of(ids, random), grey.convert("1"), np.dstack([colour, colour[..., 0]])
    images = {
        "jpeg": saved(colour, "jpeg", quality=int(random.integers(40, 98))),
        "jpeg_444": saved(colour, "jpeg", quality=90, subsampling=0),
        "jpeg_grey": saved(grey, "jpeg"),
        "jpeg_progressive": saved(colour, "jpeg", progressive=True),
        "jpeg_restarts": saved(colour, "jpeg", restart_marker_blocks=2),
        "png": saved(colour, "png"),
        "png_alpha": saved(alpha, "png"),
        "png_palette": saved(palette, "png"),
        "tiff": saved(colour, "tiff"),
        "tiff_alpha": saved(alpha, "tiff", compression="tiff_lzw"),
        "tiff_lzw": saved(colour, "tiff", compression="tiff_lzw"),
        "tiff_deflate": saved(colour, "tiff", compression="tiff_adobe_deflate"),
        "tiff_packbits": saved(colour, "tiff", compression="packbits"),
        "bmp": saved(colour, "bmp"),
        "bmp_alpha": saved(alpha, "bmp"),
        "bmp_palette": saved(palette, "bmp"),
        "webp": saved(colour, "webp"),
        "webp_lossless": saved(colour, "webp", lossless=True),
    }
    labels = {
        f"{form}_{name}_label": saved(picture, form, **options)
        for name, picture in (("grey", Image.fromarray(ids)), ("palette", palette), ("bits", bits))
        for form, options in (("png", {}), ("tiff", {"compression": "tiff_lzw"}), ("bmp", {}))
    }
    return {name: ("image", data) for name, data in images.items()} | {name: ("label", data) for name, data in labels.items()}


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One change: bits flipped, cut, bytes appended, inserted, removed, set to zero, or a byte of the header replaced.

    For half of the PNG files the checksums are made to match again.
    """
    changed, place, length = bytearray(data), int(random.integers(len(data))), int(random.integers(1, 30))
    match random.integers(7):
        case 0:
            for flip in random.integers(len(data), size=random.integers(1, 4)).tolist():
                changed[flip] ^= 1 << int(random.integers(8))
        case 1:
            del changed[place:]
        case 2:
            changed += random.bytes(length)
        case 3:
            changed[place:place] = random.bytes(length)
        case 4:
            del changed[place : place + length]
        case 5:
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        case _:
            changed[int(random.integers(min(len(data), 60)))] = int(random.integers(256))
    return with_checksums(bytes(changed)) if random.integers(2) else bytes(changed)


def with_checksums(data: bytes) -> bytes:
    """The PNG with the checksum of each chunk computed again; other files unchanged."""
    fixed, place = bytearray(data), 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        fixed[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(fixed)


def tiff(
    pixels: npt.NDArray[Any],
    photometric: int,
    *,
    order: str = "<",
    big: bool = False,
    tile: int = 0,
    planes: bool = False,
    **tags: list[int],
) -> bytes:
    """A TIFF, or BigTIFF, of [H, W] or [H, W, C] in strips of 5 rows or in compressed tiles; `tags` are others by `tNUMBER`."""
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))  # type: ignore[call-overload]
    (height, width), samples = pixels.shape[:2], pixels.shape[2] if pixels.ndim == 3 else 1
    parts = []
    for plane in [pixels[..., c] for c in range(samples)] if planes else [pixels]:
        if tile:
            padded = np.pad(plane, [(0, -height % tile), (0, -width % tile), (0, 0)][: plane.ndim])
            corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
            parts += [zlib.compress(padded[y : y + tile, x : x + tile].tobytes()) for y, x in corners]
        else:
            parts += [plane[top : top + 5].tobytes() for top in range(0, height, 5)]
    start = 16 if big else 8
    places = [start + sum(map(len, parts[:number])) for number in range(len(parts))]
    values = {256: [width], 257: [height], 258: [pixels.dtype.itemsize * 8] * samples, 259: [8 if tile else 1],
              262: [photometric], 277: [samples], 284: [2 if planes else 1]}  # fmt: skip
    values |= {322: [tile], 323: [tile], 324: places} if tile else {273: places, 278: [5]}
    values |= {325 if tile else 279: list(map(len, parts))} | {int(name[1:]): value for name, value in tags.items()}
    body = b"".join(parts)
    count, offset, room = ("Q", "Q", 8) if big else ("H", "I", 4)
    place = start + len(body)
    after = place + struct.calcsize(count) + len(values) * (4 + 2 * room) + room
    entries, more = struct.pack(order + count, len(values)), b""
    for tag, numbers in sorted(values.items()):
        kind, letter = (4, "I") if tag in (273, 279, 324, 325) else (3, "H")
        packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(packed) > room:
            packed, more = struct.pack(order + offset, after + len(more)), more + packed
        entries += struct.pack(f"{order}HH{offset}", tag, kind, len(numbers)) + packed.ljust(room, b"\0")
    header = struct.pack(f"{order}HHHQ", 43, 8, 0, place) if big else struct.pack(f"{order}HI", 42, place)
    return (b"II" if order == "<" else b"MM") + header + body + entries + bytes(room) + more
