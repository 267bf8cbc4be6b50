"""Finds every fault of an image and its label: encodings, sizes, orientation, label ids."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from pipeline.images import codec
from pipeline.images.colored_labels import MANY, NO_MASK
from pipeline.images.header import Header

SHOWN = 10
"""Ids that one fault lists."""
TURN = "turn the pixels (`exiftran -ai FILE` for JPEG, else `magick mogrify -auto-orient FILE`)"


def inspect(
    image_url: str,
    label_url: str,
    image: bytes,
    label: bytes,
    label_map: Mapping[int, int],
    *,
    drawn: Header | None = None,
) -> tuple[tuple[int, int], npt.NDArray[np.int64], list[str]]:
    """Returns (height, width), the pixels by stored label id int64[256], and every fault of the two files as `file: fault`.

    `drawn`: the header of the file that the label was made from, if it is not stored as it was.
    The size is (0, 0) if the image cannot be decoded; the counts are 0 if the label cannot.
    """
    pixels, ids, faults = None, None, list[str]()
    with faults_of(image_url, faults):
        image_header = codec.check_image(image)
        pixels = codec.decode_image(image)
    with faults_of(label_url, faults):
        label_header = codec.check_encoding(label)
        ids = codec.decode_label(label)
    if pixels is not None and ids is not None:
        faults += _mismatch(image_url, label_url, image_header, drawn or label_header)
    counts = np.zeros(256, np.int64)
    for rows in [] if ids is None else np.array_split(ids, -(-ids.size // 2**24)):  # bincount takes 8 bytes a pixel
        counts += np.bincount(rows.ravel(), minlength=256)
    illegal = [int(i) for i in np.flatnonzero(counts) if int(i) not in label_map]
    if illegal:
        found = ", ".join(f"{i} ({counts[i]} pixels)" for i in illegal[:SHOWN])
        more = f" and {len(illegal) - SHOWN} more" if len(illegal) > SHOWN else ""
        hint = f": {NO_MASK}, or list the ids in classes.yaml" if len(illegal) > MANY else ""
        legal = ", ".join(map(str, sorted(label_map)))
        faults.append(f"{label_url}: label ids outside the map: {found}{more}; legal: {legal}{hint}")
    return (pixels.shape[0], pixels.shape[1]) if pixels is not None else (0, 0), counts, faults


@contextmanager
def faults_of(url: str, faults: list[str]) -> Iterator[None]:
    """Appends what is raised inside as a fault of this file: one odd file must not hide the faults of the others."""
    try:
        yield
    except ValueError as error:
        faults.append(f"{url}: {error}")
    except Exception as error:
        faults.append(f"{url}: cannot be checked: {type(error).__name__}: {error}")


def _mismatch(image_url: str, label_url: str, image: Header, label: Header) -> list[str]:
    """The fault of a label that lies on other pixels than its image, or may do so because of an orientation tag.

    Training reads the pixels as stored; viewers and annotation tools show them as the tag says. Only the sizes tell which of
    the two the label was drawn on.
    """
    stored, drawn = (image.height, image.width), (label.height, label.width)
    if label.orientation not in (1, image.orientation):
        return [f"{label_url}: orientation tag {label.orientation}, but {image.orientation} in its image ({image_url}): {TURN}"]
    if label.orientation == 1 and image.orientation != 1 and drawn == image.upright:
        tag = f"{image_url}: orientation tag {image.orientation}: "
        if drawn != stored:
            return [f"{tag}its label was drawn on the turned view, training reads the pixels as stored: {TURN}"]
        return [
            f"{tag}viewers show it turned or mirrored, training reads the pixels as stored: {TURN} if its label was drawn in a "
            "viewer, or delete the tag (`exiftool -Orientation= FILE`) if the label lies on the stored pixels"
        ]
    if drawn != stored:
        sizes = f"label is {drawn[1]} x {drawn[0]} pixels, its image {stored[1]} x {stored[0]} ({image_url})"
        fix = (
            "export it again in the size of the image"
            if drawn != stored[::-1]
            else "its sides are exchanged: turn or transpose it"
        )
        return [f"{label_url}: {sizes}: {fix}"]
    return []
