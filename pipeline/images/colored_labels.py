"""Labels whose ids are stored as colours, in several channels or in 16 bits: turns them into labels of 8-bit ids."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.images import bmp, png, tiff
from pipeline.images.codec import IGNORE, LABEL_FORMATS, UInt8, decode_image, decode_label, decode_values, encode_png, is_of_ids
from pipeline.images.files import read_header
from pipeline.images.header import Header

Color = tuple[int, int, int]

SHOWN = 5
"""Colours that one message lists."""
MANY = 32
"""More unknown colours or ids than this are seldom classes."""
NO_MASK = "exchange images and masks if they are swapped, or export the mask again as PNG, without smoothing"
PALETTES = {"PNG": png.palette, "TIFF": tiff.palette, "BMP": bmp.palette}


def holds_ids(data: bytes, color_ids: Mapping[Color, int]) -> bool:
    """Whether a label is read as it is. Raises ValueError for what is no image."""
    header = read_header(data)
    return header.format not in LABEL_FORMATS or (is_of_ids(header) and not (header.colours == "palette" and color_ids))


def with_ids(data: bytes, color_ids: Mapping[Color, int], label_map: Mapping[int, int]) -> bytes:
    """The label as a grey PNG of stored ids; the unchanged `data` if they are stored as ids already, or cannot be.

    Takes a sound image file, the stored id of each colour, and stored id -> class or 255. In RGB and RGBA, colours tell the
    classes, whatever alpha is; without a list of colours, three equal channels are ids. The indices of a palette are ids, as in
    PASCAL VOC, unless one of them is no legal id and all their colours are known.

    Raises ValueError for colours without an id, for a palette that gives legal ids the colours of other classes, and for values
    above 255.
    """
    if holds_ids(data, color_ids):
        return data
    header = read_header(data)
    if header.colours == "palette":
        return _by_palette(data, header, color_ids, label_map)
    if header.colours in ("grey", "grey and alpha"):
        values = decode_values(data)
        if values.itemsize * 8 < header.bits:  # OpenCV halves TIFF's grey with alpha of 16 bits, in which ids become 0
            return data
        return encode_png(_in_8_bits(values if values.ndim == 2 else values[..., 0]))
    return _by_colors(data, color_ids) if header.colours in ("RGB", "RGBA") and header.bits == 8 else data


def colors_of(data: bytes) -> dict[Color, int]:
    """RGB colour -> its pixels, of an image. Raises ValueError if it does not decode."""
    codes, counts = np.unique(_codes(decode_image(data)), return_counts=True)
    return {_color(code): int(count) for code, count in zip(codes.tolist(), counts, strict=True)}


def _codes(pixels: UInt8) -> npt.NDArray[np.uint32]:
    """uint32[H, W]: the three bytes of each colour as one number."""
    codes: npt.NDArray[np.uint32] = pixels.astype(np.uint32) @ np.array([2**16, 2**8, 1], np.uint32)
    return codes


def _color(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255


def _in_8_bits(values: UInt8 | npt.NDArray[np.uint16]) -> UInt8:
    if above := np.unique(values[values > IGNORE]).tolist():
        shown = ", ".join(map(str, above[:SHOWN])) + (f" and {len(above) - SHOWN} more" if len(above) > SHOWN else "")
        raise ValueError(
            f"values above 255: {shown}: an id has 8 bits: save such pixels with an id below 255, or 255 to ignore them"
        )
    return values.astype(np.uint8)


def _by_colors(data: bytes, color_ids: Mapping[Color, int]) -> bytes:
    pixels = decode_image(data)
    if not color_ids and (pixels == pixels[..., :1]).all():
        return encode_png(np.ascontiguousarray(pixels[..., 0]))
    codes, places, counts = np.unique(_codes(pixels), return_inverse=True, return_counts=True)
    colors = list(map(_color, codes.tolist()))
    unknown = sorted((-int(count), color) for color, count in zip(colors, counts, strict=True) if color not in color_ids)
    if unknown:
        shown = ", ".join(f"{list(color)} ({-count} pixels)" for count, color in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        fix = (
            "list them in classes.yaml (layout `folders`; with ignore: true if they are no class), or store "
            "class ids in one channel"
        )
        hint = f"{NO_MASK}, or " if len(unknown) > MANY else ""
        raise ValueError(f"colours that the list of classes gives to none or to several: {shown}{more}; {hint}{fix}")
    ids = np.array([color_ids[color] for color in colors], np.uint8)
    return encode_png(ids[places].reshape(pixels.shape[:2]))


def _by_palette(data: bytes, header: Header, color_ids: Mapping[Color, int], label_map: Mapping[int, int]) -> bytes:
    indices, palette = decode_label(data), PALETTES[header.format](data)
    used = np.unique(indices).tolist()
    by_color = {i: color_ids.get(palette[i]) for i in used if i < len(palette)}
    # An ignored index needs no colour in the list: the border of PASCAL VOC has id 255 everywhere.
    known = {i: i for i in used if label_map.get(i) == IGNORE} | {
        i: stored for i, stored in by_color.items() if stored is not None
    }
    moved = {i: stored for i, stored in known.items() if label_map.get(i) != label_map[stored]}
    if len(known) < len(used) or not moved:
        return data
    if all(i in label_map for i in used):
        shown = ", ".join(f"index {i} has the colour of id {stored}" for i, stored in list(moved.items())[:SHOWN])
        raise ValueError(
            f"its palette contradicts the list of classes: {shown}; correct the ids or the colours of the list, or save the "
            "label as RGB if its colours are right"
        )
    table = np.zeros(256, np.uint8)
    table[list(known)] = list(known.values())
    return encode_png(table[indices])
