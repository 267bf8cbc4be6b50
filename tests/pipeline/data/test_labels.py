"""Data sets that teach nothing, and labels that number their classes in another way, are recognised from the counts."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.data.classes import Classes, palette
from pipeline.data.labels import class_lines, inspect_pair, misnumbered, unteachable
from pipeline.data.manifest import Manifest, Split
from tests.support.pictures import saved

NAMES = ("road", "car", "tree")


def split(*pixels: int, ignored: int = 0) -> Split:
    return Split(3, "i", "c", 9, pixels, tuple(3 * (n > 0) for n in pixels), ignored, (9, 9), (9, 9))


def manifest(train: Split, val: Split, names: tuple[str, ...] = NAMES, **changes: object) -> Manifest:
    label_map = {**{i: i for i in range(len(names))}, 255: 255}
    made = Manifest(
        "own", "folders", names, tuple(map(palette, range(len(names)))), label_map, {"train": train, "val": val}, True, ""
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def known(number: int = 3) -> Classes:
    ids = range(number)
    return Classes(tuple(f"c{i}" for i in ids), tuple(map(palette, ids)), {**{i: i for i in ids}, 255: 255})


def counts(*ids: int) -> np.ndarray:
    return np.bincount(ids, minlength=256)


def test_sound_data_sets_teach_something() -> None:
    for train, val in (
        (split(5, 5, 5), split(5, 5, 5)),
        (split(5, 1, 0, ignored=90), split(5, 5, 5)),
        (split(5, 5, 5), split(5, 0, 0)),  # a rare class that val lacks
        (split(5, 5, 0), split(0, 0, 5)),
    ):
        assert unteachable(manifest(train, val)) == []


def test_labels_of_0_and_255_get_the_line_that_makes_255_a_class() -> None:
    ((what, fix),) = unteachable(manifest(split(30, 0, ignored=10), split(30, 0, ignored=10), ("background", "crack")))
    assert what == (
        "train: every labelled pixel is `background`, so there is nothing to learn; the other 25 % of the pixels have id 255, "
        "which means ignored here"
    )
    assert "`classes: [{id: 0, name: background}, {id: 255, name: crack}]`" in fix
    assert "jobs.prepare" in fix


@pytest.mark.parametrize("train", [split(9, 0, 0), split(0, 0, 9), split(0, 9, 0, ignored=3)])
def test_one_class_of_several_in_train_is_named(train: Split) -> None:
    ((what, _),) = unteachable(manifest(train, split(5, 5, 5)))
    assert what.startswith(f"train: every labelled pixel is `{NAMES[train.pixels.index(9)]}`, so there is nothing to learn")


def test_the_line_is_for_classes_yaml_and_for_255_only() -> None:
    train = split(0, 9, 0, ignored=3)
    for other in ({"layout": "voc"}, {"label_map": {0: 0, 1: 1, 2: 2, 9: 255, 255: 255}}):
        ((what, fix),) = unteachable(manifest(train, split(5, 5, 5), **other))
        assert "255" not in what + fix


def test_only_a_test_split_may_have_no_label() -> None:
    nothing, some = split(0, 0, 0, ignored=9), split(5, 5, 5)
    assert [what for what, _ in unteachable(manifest(nothing, nothing))] == [
        "train: every pixel is ignored", "val: every pixel is ignored",
    ]  # fmt: skip
    assert unteachable(manifest(some, some, splits={"train": some, "val": some, "test": nothing})) == []


@pytest.mark.parametrize(
    ("number", "ids", "spread"),
    [
        (3, (0, 127, 255), (0, 127, 255)),
        (3, (0, 128), (0, 128, 255)),
        (4, (85, 170), (0, 85, 170, 255)),
        (6, (0, 51), (0, 51, 102)),
    ],
)
def test_ids_spread_over_a_byte_are_recognised(number: int, ids: tuple[int, ...], spread: tuple[int, ...]) -> None:
    cause = misnumbered(known(number), counts(*ids))
    assert cause is not None
    lines = yaml.safe_load(cause.partition("`")[2].partition("`")[0])
    assert [entry["id"] for entry in lines["classes"]][: len(spread)] == list(spread)


def test_ids_from_1_are_recognised() -> None:
    cause = misnumbered(known(), counts(0, 1, 2, 3, 255))
    assert cause == (
        "the ids look like classes from 1, with 0 for unlabelled pixels: write `classes: [{id: 0, ignore: true}, {id: 1, "
        "name: c0}, {id: 2, name: c1}, {id: 3, name: c2}]` into classes.yaml"
    )


def test_ids_with_gaps_are_given_to_the_classes_in_their_order() -> None:
    assert misnumbered(known(), counts(11, 7, 7, 8, 255)) == (
        "the labels hold 3 other ids for 3 classes: if they are in this order, write `classes: [{id: 7, name: c0}, {id: 8, "
        "name: c1}, {id: 11, name: c2}]` into classes.yaml"
    )


def test_a_label_that_is_stored_in_colours_keeps_its_orientation_tag() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    grey = Image.new("RGB", (8, 8))
    image, label = saved(np.zeros((8, 8, 3), np.uint8), "png"), saved(grey, "png", exif=tags)
    _, (_, _, faults) = inspect_pair(("a.png", "a_mask.png"), image, label, known(), packed=True)
    assert [fault.partition(" turn ")[0] for fault in faults] == ["a_mask.png: orientation tag 6, but 1 in its image (a.png):"]
    upright = saved(grey, "png")
    stored, (_, _, faults) = inspect_pair(("a.png", "a_mask.png"), image, upright, known(), packed=True)
    assert (stored != upright, faults) == (True, [])


@pytest.mark.parametrize("ids", [(0, 1, 2), (0, 255), (0, 1, 2, 77), (0, 5), (9,)])
def test_other_ids_have_no_known_cause(ids: tuple[int, ...]) -> None:
    assert misnumbered(known(), counts(*ids)) is None
    own = Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)), {3: 0, 7: 1})
    assert misnumbered(own, counts(0, 255)) is None


def test_any_name_survives_the_line() -> None:
    names = {0: "no", 1: "a: b", 2: "道路", 3: "x, {y}", 255: "'#1'"}
    assert yaml.safe_load(class_lines(names).strip("`"))["classes"] == [{"id": i, "name": name} for i, name in names.items()]
