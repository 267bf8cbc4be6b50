"""What the samples of a data set come to: counts, sizes, duplicates; the manifest of it all."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import Config
from pipeline.index import Entry, content
from pipeline.layouts import IGNORE, Classes
from pipeline.shards import Manifest, Split

SHOWN_DUPLICATES = 20


@dataclass(frozen=True)
class Done:
    """What became of some samples: no entries when there are faults."""

    split: str
    entries: tuple[Entry, ...]
    faults: tuple[str, ...]
    histograms: npt.NDArray[np.int64]
    """int64[n, 256]: pixels of each image by stored label id."""


def of_split(done: list[Done], name: str) -> tuple[list[Entry], npt.NDArray[np.int64]]:
    """Entries of a split, and int64[n, 256] pixels of each image by stored label id."""
    mine = [d for d in done if d.split == name]
    return [entry for d in mine for entry in d.entries], np.concatenate([d.histograms for d in mine])


def of_classes(histograms: npt.NDArray[np.int64], known: Classes) -> npt.NDArray[np.int64]:
    """int64[n, K]: pixels of each image by class."""
    pixels = np.zeros((len(histograms), 256), np.int64)
    for stored, index in known.label_map.items():
        pixels[:, index] += histograms[:, stored]
    return pixels[:, : len(known.names)]


def manifest_of(config: Config, known: Classes, done: list[Done], identity: str, prefix: str) -> Manifest:
    """The manifest of what was looked at, its indexes to be written below `prefix`."""
    data = config.data
    names = list(dict.fromkeys(d.split for d in done))
    splits = {name: _split(*of_split(done, name), known, f"{prefix}/index-{name}") for name in names}
    twins = _duplicates({name: of_split(done, name)[0] for name in names})
    return Manifest(data.name, data.layout, known.names, known.colors, known.label_map, splits, data.packed, identity,
                    num_duplicates=len(twins), duplicates=tuple(twins[:SHOWN_DUPLICATES]))  # fmt: skip


def _split(entries: list[Entry], histograms: npt.NDArray[np.int64], known: Classes, index: str) -> Split:
    pixels = of_classes(histograms, known)
    sizes = np.array([(e.height, e.width) for e in entries])
    return Split(
        num_images=len(entries),
        index=index,
        content=content(entries),
        bytes=sum(e.image_bytes + e.label_bytes for e in entries),
        pixels=tuple(pixels.sum(0).tolist()),
        images=tuple((pixels > 0).sum(0).tolist()),
        ignored=int(sum(histograms[:, stored].sum() for stored, index in known.label_map.items() if index == IGNORE)),
        smallest=tuple(sizes.min(0).tolist()),
        largest=tuple(sizes.max(0).tolist()),
    )


def _duplicates(splits: dict[str, list[Entry]]) -> list[tuple[str, str]]:
    """("train/ID", "val/ID") of each image that occurs in an earlier split as well, byte for byte."""
    first: dict[bytes, tuple[str, str]] = {}
    twins = []
    for split, entries in splits.items():
        for entry in entries:
            seen = first.setdefault(entry.image_sha256, (split, entry.sample_id))
            if seen[0] != split:
                twins.append(("/".join(seen), f"{split}/{entry.sample_id}"))
    return twins
