"""Labels whose classes are stored as colours: turns them into labels of ids, by a table of colours."""

from collections.abc import Mapping

import numpy as np

from pipeline.images import png
from pipeline.images.codec import IGNORE, decode_image, decode_label, encode_png

Color = tuple[int, int, int]

SHOWN = 5
"""Colours that one message lists."""


def is_rgb(data: bytes) -> bool:
    """Whether a file is a PNG in RGB or RGBA of 8 bits a channel."""
    return data[1:4] == b"PNG" and data[24:26] in (b"\x08\2", b"\x08\6")


def has_palette(data: bytes) -> bool:
    """Whether a file is a PNG with a palette."""
    return data[1:4] == b"PNG" and data[25:26] == b"\3"


def with_ids(data: bytes, color_ids: Mapping[Color, int], label_map: Mapping[int, int]) -> bytes:
    """The label as a grey PNG of stored ids if its colours tell the classes; the unchanged `data` if its indices do.

    Takes a sound PNG in RGB or with a palette, the stored id of each colour, and stored id -> class or 255. In RGB and
    RGBA, colours tell the classes, whatever alpha is. The indices of a palette do, as in PASCAL VOC, unless one of them is no
    legal id and all their colours are known.

    Raises ValueError for colours without an id, and for a palette that gives legal ids the colours of other classes.
    """
    if has_palette(data):
        return _by_palette(data, color_ids, label_map)
    pixels = decode_image(data)
    codes, places, counts = np.unique(
        pixels.astype(np.uint32) @ np.array([2**16, 2**8, 1], np.uint32), return_inverse=True, return_counts=True
    )
    colors: list[Color] = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes]
    unknown = sorted((-int(count), color) for color, count in zip(colors, counts, strict=True) if color not in color_ids)
    if unknown:
        shown = ", ".join(f"{list(color)} ({-count} pixels)" for count, color in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise ValueError(
            f"colours that the list of classes gives to none or to several: {shown}{more}; list them in classes.yaml (layout "
            "`folders`; with ignore: true if they are no class), or store class ids in one channel"
        )
    ids = np.array([color_ids[color] for color in colors], np.uint8)
    return encode_png(ids[places].reshape(pixels.shape[:2]))


def _by_palette(data: bytes, color_ids: Mapping[Color, int], label_map: Mapping[int, int]) -> bytes:
    indices, palette = decode_label(data), _palette(data)
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


def _palette(data: bytes) -> list[Color]:
    start, end = next(((start, end) for kind, start, end in png.chunks(data) if kind == "PLTE"), (0, 0))
    return [(data[i], data[i + 1], data[i + 2]) for i in range(start, end - 2, 3)]
