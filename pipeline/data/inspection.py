"""Every fault of one pair of files: encodings, sizes, label ids."""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from pipeline.images import resize
from pipeline.images.resize import PNG


def inspect(
    image_url: str, label_url: str, image: bytes, label: bytes, label_map: Mapping[int, int]
) -> tuple[tuple[int, int], npt.NDArray[np.int64], list[str]]:
    """(height, width), pixels by stored label id int64[256], and every fault of the two files as `file: fault`."""
    pixels, ids, faults = None, None, []
    try:
        check_encoding(image)
        pixels = resize.decode_image(image)
    except ValueError as error:
        faults.append(f"{image_url}: {error}")
    try:
        check_encoding(label)
        if not label.startswith(PNG):
            raise ValueError("a label must be a PNG: JPEG changes the class ids")
        ids = resize.decode_label(label)
    except ValueError as error:
        faults.append(f"{label_url}: {error}")
    if pixels is not None and ids is not None and pixels.shape[:2] != ids.shape:
        (h, w), (height, width) = ids.shape, pixels.shape[:2]
        faults.append(f"{label_url}: label is {w} x {h} pixels, its image {width} x {height} ({image_url})")
    counts = np.bincount(ids.ravel(), minlength=256) if ids is not None else np.zeros(256, np.int64)
    illegal = [int(i) for i in np.flatnonzero(counts) if int(i) not in label_map]
    if illegal:
        found = ", ".join(f"{i} ({counts[i]} pixels)" for i in illegal)
        faults.append(f"{label_url}: label ids outside the map: {found}; legal: {', '.join(map(str, sorted(label_map)))}")
    return (pixels.shape[0], pixels.shape[1]) if pixels is not None else (0, 0), counts, faults


def check_encoding(data: bytes) -> None:
    """Raises ValueError for anything but a whole PNG or JPEG: some decoders fill what is missing with grey and say nothing."""
    if not data:
        raise ValueError("empty file")
    if data.startswith(PNG):
        for kind, start, end in _png_chunks(data):
            if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise ValueError(f"damaged PNG: chunk {kind!r} at byte {start - 8} fails its checksum")
    elif data.startswith(b"\xff\xd8"):
        if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError(f"truncated JPEG: no end marker after {len(data)} bytes")
    else:
        raise ValueError("neither PNG nor JPEG")


def _png_chunks(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(type, start, end) of each chunk's content, up to IEND."""
    place, kind = len(PNG), ""
    while kind != "IEND":
        start = place + 8
        end = start + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : start].decode("latin-1")
        if end + 4 > len(data):
            raise ValueError(f"truncated PNG: ends after {len(data)} bytes, before its IEND")
        yield kind, start, end
        place = end + 4
