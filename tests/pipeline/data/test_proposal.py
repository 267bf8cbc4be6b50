"""The class table that is proposed for labels without one, and the one sentence for labels that hold no classes."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.config.base import Storage
from pipeline.config.data import ClassEntry
from pipeline.data.classes import classes
from pipeline.data.prepare import prepare
from pipeline.data.proposal import Proposal, propose, write_classes
from pipeline.errors import SourceError
from pipeline.images.codec import UInt8, encode_png
from pipeline.storage.store import open_store
from tests.support import folders
from tests.support.folders import noise, rows_of
from tests.support.pictures import saved

RED, BLACK = (255, 0, 0), (0, 0, 0)


def proposed(folder: Path, labels: list[UInt8 | bytes]) -> Proposal:
    for number, label in enumerate(labels):
        (folder / f"{number}.png").write_bytes(label if isinstance(label, bytes) else encode_png(label))
    store = open_store(str(folder), Storage(path=str(folder)))
    return propose(store, [f"{number}.png" for number in range(len(labels))])


def smoothed(label: UInt8) -> UInt8:
    """The label with soft edges, as a resize leaves it."""
    return np.asarray(cv2.resize(cv2.resize(label, (96, 96)), (97, 97), interpolation=cv2.INTER_CUBIC), np.uint8)


def one(stored: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": stored, "name": name, **more}


@pytest.mark.parametrize(
    ("labels", "entries", "note"),
    [
        ([rows_of(0, 255), rows_of(0)], [one(0, "background"), one(255, "foreground")], None),
        ([rows_of(0, 1)], [one(0, "background"), one(1, "foreground")], None),
        ([rows_of(0, 1, 2)], [one(0, "background"), one(1, "class 1"), one(2, "class 2")], None),
        ([rows_of(1, 2)], [one(1, "class 1"), one(2, "class 2")], None),
        ([rows_of(0, 1, 255)], [one(0, "background"), one(1, "class 1"), {"id": 255, "ignore": True}], "255 is taken as ignored"),
        ([rows_of(0, 127, 255)], [one(0, "background"), one(127, "class 127"), one(255, "class 255")], "spread over 0 to 255"),
        (
            [np.stack([rows_of(0, 1)] * 3, -1), rows_of(0, 1)],
            [one(0, "background"), one(1, "foreground")],
            None,
        ),
        (
            [np.where(rows_of(0, 1)[..., None], np.uint8(RED), np.uint8(BLACK)), np.zeros((24, 24, 3), np.uint8)],
            [one(0, "background", color=[0, 0, 0]), one(1, "color 255-0-0", color=[255, 0, 0])],
            None,
        ),
        (
            [np.pad(rows_of(0, 85, 170, 255), ((0, 100), (0, 0)))],
            [one(0, "background"), *(one(i, f"class {i}") for i in (85, 170, 255))],
            "spread over 0 to 255",
        ),
        ([rows_of(0, *range(1, n)) for n in (3, 6, 8, 12)], None, "number objects instead of classes"),
    ],
    ids=["0/255", "0/1", "ids", "from 1", "border", "spread", "grey as RGB", "colours", "rare and spread", "objects"],
)
def test_the_table_has_what_the_labels_hold(
    tmp_path: Path, labels: list[UInt8 | bytes], entries: list[dict[str, Any]] | None, note: str | None
) -> None:
    found = proposed(tmp_path, labels)
    assert entries is None or found.entries == entries
    assert [note in each for each in found.notes] == [True] if note else found.notes == []
    known = classes("folders", None, [ClassEntry.model_validate(entry) for entry in found.entries])
    assert set(known.names) == {entry["name"] for entry in found.entries if "name" in entry}


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([rows_of(0), rows_of(0)], "every pixel of every label is 0, so there is nothing to learn: export the masks again"),
        ([rows_of(255)], "every pixel of every label is 255"),
        ([smoothed(rows_of(0, 255, size=96))], "of the pixels are 0 or 255: a resize or JPEG has smoothed the edges"),
        ([noise(0, 64)], "colours, which are no classes: are images and masks swapped"),
        (
            [np.ascontiguousarray(noise(0, 64)[..., 0])],
            "values from 0 to 255, which are no classes: are images",
        ),
        ([np.full((8, 8, 3), RED, np.uint8)], "every pixel of every label has the colour [255, 0, 0]"),
        ([rows_of(0, 1), noise(1)], "1 labels are stored as colours and 1 as ids"),
        (
            [saved(rows_of(0, 1), "jpeg")] * 3,
            "JPEG changes the class ids: export it again as PNG (and 2 more labels)",
        ),
        ([b"no image"] * 3, "and 2 more labels"),
    ],
    ids=["empty", "full", "smoothed", "swapped", "grey photos", "one colour", "mixed", "JPEG", "no images"],
)
def test_values_that_are_no_classes_are_answered_once(tmp_path: Path, labels: list[UInt8 | bytes], sentence: str) -> None:
    with pytest.raises(SourceError) as caught:
        proposed(tmp_path, labels)
    assert len(caught.value.faults) == 1
    assert sentence in str(caught.value)


def test_one_odd_label_does_not_hide_what_the_others_hold(tmp_path: Path) -> None:
    assert [entry["id"] for entry in proposed(tmp_path, [rows_of(0, 3), b"no image", rows_of(3, 5)]).entries] == [0, 3, 5]


def test_the_written_table_is_read_and_an_existing_one_is_never_replaced(tmp_path: Path) -> None:
    source = folders.write(tmp_path / "source", "", [rows_of(0, 255)] * 3, [rows_of(0, 255)])
    (source / "classes.yaml").unlink()
    config = folders.config(tmp_path, source)
    address, found = write_classes(config)
    assert address == str(source / "classes.yaml")
    assert [entry["name"] for entry in found.entries] == ["background", "foreground"]
    assert prepare(config).class_names == ("background", "foreground")
    (source / "classes.yaml").write_text("- mine")
    with pytest.raises(SourceError, match="lists the classes: nothing was written"):
        write_classes(config)
    assert (source / "classes.yaml").read_text() == "- mine"


def test_given_classes_replace_the_table_of_the_source(tmp_path: Path) -> None:
    source = folders.write(tmp_path / "source", "[one, two]", [rows_of(0, 9)] * 3, [rows_of(0, 9)])
    given = [{"id": 0, "name": "ground"}, {"id": [8, 9], "name": "crack"}, {"id": 7, "ignore": True}]
    assert prepare(folders.config(tmp_path, source, classes=given)).class_names == ("ground", "crack")
    with pytest.raises(SourceError, match=r"data\.classes: entry 2: id = 0: entry 1 has the same id"):
        prepare(folders.config(tmp_path, source, classes=[given[0], given[0]]))
