"""What the labels of a source say: colours become ids, another numbering is recognised, and so are data that teach nothing."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import yaml

from pipeline.data.classes import Classes
from pipeline.data.inspection import inspect
from pipeline.data.manifest import Manifest
from pipeline.formatting import percent
from pipeline.images.codec import IGNORE, check_encoding
from pipeline.images.colored_labels import holds_ids, with_ids

FEW_LABELLED = 0.1
"""Share of labelled pixels below which a score says little about the images."""
Inspected = tuple[tuple[int, int], npt.NDArray[np.int64], list[str]]
"""(height, width), the pixels by stored label id int64[256], and the faults, as `inspect` returns them."""


def inspect_pair(urls: tuple[str, str], image: bytes, label: bytes, known: Classes, packed: bool) -> tuple[bytes, Inspected]:
    """Inspects an image and its label; returns the label too, as one of 8-bit ids if it is stored otherwise.

    `urls`: the addresses of image and label, for the faults. Only a packed data set can hold what is not in the source's file.
    """
    try:
        if holds_ids(label, known.color_ids):
            return label, inspect(*urls, image, label, known.label_map)
        header = check_encoding(label)
        ids = with_ids(label, known.color_ids, known.label_map)
        if ids != label and not packed:
            stored = f"{header.colours} of {header.bits} bits a channel"
            raise ValueError(f"its ids are stored as {stored}, which only packing turns into 8-bit ids: set data.packed=true")
        return ids, inspect(*urls, image, ids, known.label_map, drawn=header)
    except Exception as error:  # of any type: one odd file must not hide the faults of the others
        size, counts, faults = inspect(*urls, image, label, known.label_map)
        others = [fault for fault in faults if not fault.startswith(f"{urls[1]}: ")]
        return label, (size, counts, [*others, f"{urls[1]}: {error}"])


def unteachable(manifest: Manifest) -> list[tuple[str, str]]:
    """(what, fix) for each reason why training on the data set, or its validation, can mean nothing."""
    found, names, train = [], manifest.class_names, manifest.splits["train"]
    ids = f"compare the ids in the labels with the label map of layout `{manifest.layout}`"
    for name, split in manifest.splits.items():
        # A published test split has no labels. Without labels in train and val a run cannot learn or choose a checkpoint.
        if name != "test" and not any(split.pixels):
            found.append((f"{name}: every pixel is ignored", ids))
    present = [k for k, pixels in enumerate(train.pixels) if pixels]
    if len(present) == 1:
        only, share = names[present[0]], percent(train.ignored / (train.ignored + sum(train.pixels)))
        what = f"train: every labelled pixel is `{only}`, so there is nothing to learn"
        missing = next((k for k in range(len(names)) if k not in present), None)
        only_255 = [i for i, k in manifest.label_map.items() if k == IGNORE] == [IGNORE]
        if train.ignored and missing is not None and only_255 and manifest.layout == "folders":
            what += f"; the other {share} of the pixels have id 255, which means ignored here"
            stored = {i: names[k] for i, k in manifest.label_map.items() if k not in (missing, IGNORE)}
            lines = class_lines(stored | {IGNORE: names[missing]})
            ids = (
                f"if 255 is the class `{names[missing]}`, write {lines} into classes.yaml, and run python -m jobs.prepare CONFIG"
            )
        found.append((what, ids))
    return found


def doubts(manifest: Manifest, name: str) -> list[str]:
    """What speaks against a score of split `name`, each in a few words: images that training saw, labels that say little."""
    split, listed = manifest.splits[name], len(manifest.duplicates)
    found = ["images of the training split"] if name == "train" else []
    # Each pair names the image of the earlier split first.
    seen = sum(later.startswith(f"{name}/") for _, later in manifest.duplicates)
    if seen and listed < manifest.num_duplicates:  # the manifest lists only the first ones
        found.append(f"{seen} or more of the images also in another split")
    elif seen:
        found.append(f"{seen} of the images also in another split")
    if name in manifest.alike:
        found.append("all labels the same file")
    labelled = sum(split.pixels)
    if 0 < labelled < FEW_LABELLED * (labelled + split.ignored):
        found.append(f"{labelled:,} of {labelled + split.ignored:,} pixels labelled")
    return found


def misnumbered(known: Classes, stored: npt.NDArray[np.int64]) -> str | None:
    """The lines of classes.yaml for labels that number the classes in another common way; None if that is not the cause.

    `stored`: int64[256], pixels by stored id in the whole data set.
    The ways: spread over 0 to 255, from 1 with 0 unlabelled, or with gaps.
    """
    ids, number = {int(i) for i in np.flatnonzero(stored)}, len(known.names)
    if ids <= known.label_map.keys() or [i for i, k in known.label_map.items() if k != IGNORE] != list(range(number)):
        return None
    for spread in ([k * 255 // (number - 1) for k in range(number)], [round(k * 255 / (number - 1)) for k in range(number)],
                   [k * (255 // (number - 1)) for k in range(number)]):  # fmt: skip
        if ids <= set(spread):
            lines = class_lines(dict(zip(spread, known.names, strict=True)))
            return f"the ids look like {number} classes spread over 0 to 255: write {lines} into classes.yaml"
    if number in ids and ids <= {*range(number + 1), IGNORE}:
        lines = class_lines({0: None} | dict(enumerate(known.names, 1)))
        return f"the ids look like classes from 1, with 0 for unlabelled pixels: write {lines} into classes.yaml"
    if len(ids - {IGNORE}) == number:
        lines = class_lines(dict(zip(sorted(ids), known.names, strict=False)))
        return (
            f"the labels hold {number} other ids for {number} classes: if they are in this order, write {lines} into classes.yaml"
        )
    return None


def class_lines(names: Mapping[int, str | None]) -> str:
    """The text of a classes.yaml, in one line, from stored id -> name of the class, or None for ignored pixels."""
    entries = [{"id": i, "name": name} if name else {"id": i, "ignore": True} for i, name in sorted(names.items())]
    text = yaml.safe_dump(entries, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return f"`classes: {text.strip()}`"
