"""Finds every fault of an image and its label: encodings, sizes, label ids."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.images import codec
from pipeline.images.codec import PNG, check_encoding


def inspect(
    image_url: str, label_url: str, image: bytes, label: bytes, label_map: Mapping[int, int]
) -> tuple[tuple[int, int], npt.NDArray[np.int64], list[str]]:
    """Returns (height, width), the pixels by stored label id int64[256], and every fault of the two files as `file: fault`.

    The size is (0, 0) if the image cannot be decoded; the counts are 0 if the label cannot.
    """
    pixels, ids, faults = None, None, []
    try:
        check_encoding(image)
        pixels = codec.decode_image(image)
    except ValueError as error:
        faults.append(f"{image_url}: {error}")
    try:
        check_encoding(label)
        if not label.startswith(PNG):
            raise ValueError("a label must be a PNG: JPEG changes the class ids")
        ids = codec.decode_label(label)
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
