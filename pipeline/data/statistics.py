"""Statistics of a data set: counts, sizes and duplicates of its samples; builds the manifest from them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.config import Config
from pipeline.data.classes import Classes
from pipeline.data.index import Entry, content
from pipeline.data.manifest import Manifest, Split
from pipeline.formatting import percent, size, table
from pipeline.images.codec import IGNORE

SHOWN_DUPLICATES = 20


@dataclass(frozen=True)
class PackResult:
    """The result of one PackTask; it has no entries if there are faults."""

    split: str
    entries: tuple[Entry, ...]
    faults: tuple[str, ...]
    pixels: npt.NDArray[np.int64]
    """int64[256]: pixels by stored label id."""
    present: npt.NDArray[np.uint8]
    """uint8[n, 32]: one row per image; bit i is set if stored label id i occurs in it (np.packbits)."""


def of_split(done: list[PackResult], name: str) -> list[PackResult]:
    """The results of split `name`, in order."""
    return [d for d in done if d.split == name]


def entries_of(done: list[PackResult]) -> list[Entry]:
    """The entries of all results, in order."""
    return [entry for d in done for entry in d.entries]


def members_of(done: list[PackResult], known: Classes) -> list[npt.NDArray[np.int64]]:
    """For each class, the positions int64[m] of the images that contain it."""
    present = np.concatenate([d.present for d in done])
    found = []
    for label in range(len(known.names)):
        stored = np.isin(np.arange(256), [i for i, index in known.label_map.items() if index == label])
        found.append(np.flatnonzero((present & np.packbits(stored)).any(1)))
    return found


def manifest_of(config: Config, known: Classes, done: list[PackResult], identity: str, prefix: str) -> Manifest:
    """The manifest of the checked samples. The caller writes the index of each split to `<prefix>/index-<split>`."""
    data = config.data
    parts = {name: of_split(done, name) for name in dict.fromkeys(d.split for d in done)}
    splits = {name: _split(part, known, f"{prefix}/index-{name}") for name, part in parts.items()}
    entries = {name: entries_of(part) for name, part in parts.items()}
    twins = _duplicates(entries)
    return Manifest(data.name, data.layout, known.names, known.colors, known.label_map, splits, data.packed, identity,
                    num_duplicates=len(twins), duplicates=tuple(twins[:SHOWN_DUPLICATES]), alike=_alike(entries))  # fmt: skip


def _split(done: list[PackResult], known: Classes, index: str) -> Split:
    entries, stored = entries_of(done), np.sum([d.pixels for d in done], axis=0)
    pixels = np.zeros(256, np.int64)
    for label, of_class in known.label_map.items():
        pixels[of_class] += stored[label]
    sizes = np.array([(e.height, e.width) for e in entries])
    return Split(
        num_images=len(entries),
        index=index,
        content=content(entries),
        bytes=sum(e.image_bytes + e.label_bytes for e in entries),
        pixels=tuple(pixels[: len(known.names)].tolist()),
        images=tuple(map(len, members_of(done, known))),
        ignored=int(pixels[IGNORE]),
        smallest=tuple(sizes.min(0).tolist()),
        largest=tuple(sizes.max(0).tolist()),
    )


def _duplicates(splits: dict[str, list[Entry]]) -> list[tuple[str, str]]:
    """("train/ID", "val/ID") of each image that also occurs in an earlier split, byte for byte."""
    first: dict[bytes, tuple[str, str]] = {}
    twins = []
    for split, entries in splits.items():
        for entry in entries:
            seen = first.setdefault(entry.image_sha256, (split, entry.sample_id))
            if seen[0] != split:
                twins.append(("/".join(seen), f"{split}/{entry.sample_id}"))
    return twins


def _alike(splits: dict[str, list[Entry]]) -> tuple[str, ...]:
    """Splits whose labels are all the same file as every label of train; none if train has a single image."""
    labels = {name: {entry.label_sha256 for entry in entries} for name, entries in splits.items()}
    if len(splits.get("train", ())) < 2 or len(labels["train"]) > 1:
        return ()
    return tuple(name for name, found in labels.items() if found == labels["train"])


def split_table(manifest: Manifest) -> str:
    """A table of each split's number of images, their sizes, bytes and share of ignored pixels."""
    rows = []
    for name, split in manifest.splits.items():
        spans = zip(split.smallest, split.largest, strict=True)
        height, width = (str(low) if low == high else f"{low} to {high}" for low, high in spans)
        ignored = percent(split.ignored / max(1, split.ignored + sum(split.pixels)))
        rows.append((name, f"{split.num_images:,}", height, width, size(split.bytes), ignored))
    return table(("split", "images", "height", "width", "bytes", "ignored"), rows)


def class_table(manifest: Manifest) -> str:
    """A table of each class's share of the labelled pixels and the number of images that contain it, by split."""
    splits = manifest.splits.values()
    headings = ["class", *(heading for name in manifest.splits for heading in (f"{name} %", "images"))]
    rows = []
    for k, name in enumerate(manifest.class_names):
        cells = ((f"{100 * split.pixels[k] / max(1, sum(split.pixels)):.2f}", f"{split.images[k]:,}") for split in splits)
        rows.append([name, *(cell for pair in cells for cell in pair)])
    return table(headings, rows)
