"""Sources of data sets made for tests: empty files at the right places."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.data.layouts import find_samples
from pipeline.data.source.pairing import Pair, TextList
from pipeline.errors import SourceError
from pipeline.storage.store import Store


def find_splits(layout: str, source: Store, lists: Mapping[str, str]) -> dict[str, list[Pair]]:
    """Pairs of each split; `lists` are keys in the source."""
    texts = {split: TextList(source, key, f"data.lists.{split} = {key}") for split, key in lists.items()}
    return find_samples(layout, source, texts).splits


def make(root: Path, *files: str, **texts: str) -> Store:
    """A source of one-byte files, and of texts by name (`__` for the dot)."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    for name, text in texts.items():
        (root / name.replace("__", ".")).write_text(text)
    return Store(str(root))


def faults(layout: str, source: Store, lists: dict[str, str] | None = None) -> list[str]:
    """The faults, without the source's address."""
    with pytest.raises(SourceError) as caught:
        find_splits(layout, source, lists or {})
    return [fault.replace(f"{source.root}/", "") for fault in caught.value.faults]


ADE = ("images/training/t.jpg", "annotations/training/t.png", "images/validation/v.jpg", "annotations/validation/v.png")


def object_info(separator: str = "\t", lines: int = 150) -> str:
    names = ["wall", "building, edifice", "screen door, screen", *(f"thing {i}, synonym" for i in range(4, lines + 1))]
    rows = [["Idx", "Ratio", "Train", "Val", "Name"], *([f"{i} ", "0.1", "7", "8", n] for i, n in enumerate(names, 1))]
    return "".join(separator.join(row) + " \r\n" for row in rows)


def voc(root: Path, base: str, **lists: str) -> Store:
    source = make(root, *(f"{base}JPEGImages/{i}.jpg" for i in "abcd"), *(f"{base}SegmentationClass/{i}.png" for i in "abc"))
    for split, text in lists.items():
        source.write(f"{base}ImageSets/Segmentation/{split}.txt", text.encode())
    return source
