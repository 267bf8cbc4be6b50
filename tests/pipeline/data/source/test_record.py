"""The record of a source comes back as written, and says what was added, changed and removed."""

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.load import parse
from pipeline.data.classes import Classes
from pipeline.data.source.pairing import Pair
from pipeline.data.source.record import Samples, differences, identity, read_record, record_key, samples_of, write_record
from pipeline.errors import ShardError
from pipeline.storage.store import Object, Store
from tests.pipeline.data.test_labels import manifest, split

PAIRS = {
    "train": [Pair("a", "images/train/a.png", "masks/train/a.png")],
    "val": [Pair("b", "images/val/b.png", "masks/val/b.png")],
}
LISTING = {key: Object(key, 3, "17") for pairs in PAIRS.values() for pair in pairs for key in (pair.image, pair.label)}


def sample(key: str, size: int = 3, version: str = "1", label: str | None = None) -> tuple[Object, Object]:
    return Object(f"images/{key}", size, version), Object(label or f"masks/{key}", size, version)


def test_data_sets_that_earlier_versions_prepared_keep_their_identity() -> None:
    """The hash is that of commit 5243265."""
    data = {"name": "toy", "crop_size": 33, "layout": "folders", "source": "/src"}
    config = parse({"name": "test", "storage": {"path": "/out"}, "model": {"recurrence": 2}, "data": data})
    known = Classes(("road", "car"), ((1, 2, 3), (0, 0, 0)), {0: 0, 1: 1, 255: 255}, {(1, 2, 3): 0, (0, 0, 0): 1})
    before = "29aa5a39e22d8777d55145decac4a05742716365c21cdf9cf12358e351d3480b"
    assert identity(config, "/src", known, PAIRS, LISTING) == before
    ignored = Classes(known.names, known.colors, known.label_map, {**known.color_ids, (9, 9, 9): 255})
    assert identity(config, "/src", ignored, PAIRS, LISTING) != before


NAMES = st.text(string.ascii_letters + " #%[]*?/道ü'\"", min_size=1, max_size=8)
OBJECTS = st.tuples(NAMES, st.integers(0, 2**40), NAMES).map(lambda values: Object(*values))
SAMPLES = st.dictionaries(
    st.sampled_from(["train", "val", "test"]), st.dictionaries(NAMES, st.tuples(OBJECTS, OBJECTS), min_size=1, max_size=4),
    min_size=1,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(SAMPLES, NAMES)
def test_a_record_comes_back_equal(tmp_path_factory, samples: Samples, root: str) -> None:  # type: ignore[no-untyped-def]
    store, made = Store(str(tmp_path_factory.getbasetemp() / "record")), manifest(split(1, 1, 1), split(1, 1, 1))
    write_record(store, record_key(made), root, samples)
    assert read_record(store, made) == (root, samples)
    assert differences(samples, samples) == []


def test_a_data_set_of_an_earlier_version_has_no_record(tmp_path: Path) -> None:
    assert read_record(Store(str(tmp_path)), manifest(split(1, 1, 1), split(1, 1, 1))) is None


def test_a_damaged_record_is_named_with_the_command(tmp_path: Path) -> None:
    store, made = Store(str(tmp_path)), manifest(split(1, 1, 1), split(1, 1, 1))
    write_record(store, record_key(made), "/src", {"train": {"a": sample("a")}})
    whole = store.read(record_key(made))
    for data in (b"", whole[:-9], b"x" * len(whole)):
        store.write(record_key(made), data)
        with pytest.raises(ShardError, match=r"source.parquet: damaged .*: run python -m jobs.prepare CONFIG again"):
            read_record(store, made)


def test_samples_are_the_pairs_with_their_objects() -> None:
    listing = {"a.png": Object("a.png", 1, "x"), "A.png": Object("A.png", 2, "y")}
    assert samples_of({"train": [Pair("a", "a.png", "A.png")]}, listing) == {"train": {"a": (*listing.values(),)}}
    assert samples_of({"train": range(3)}, {}) == {"train": {}}


def test_what_was_added_changed_and_removed_is_counted_and_shown() -> None:
    before = {"train": {k: sample(k) for k in "abc"}, "val": {"v": sample("v"), "w": sample("w")}}
    now = {
        "train": {
            "a": sample("a"),
            "b": (sample("b")[0], sample("b", size=4)[1]),
            "c": sample("c", version="2"),
            "n": sample("n"),
        },
        "val": {"v": sample("v", label="masks/other")},
        "test": {"t": sample("t")},
    }
    assert differences(before, now) == [
        "samples of train: 1 added (first: images/n), 2 changed (first: masks/b)",
        "samples of val: 1 changed (first: masks/other), 1 removed (first: images/w)",
        "samples of test: 1 added (first: images/t)",
    ]
    moved = {"train": {"a": sample("a")}, "val": {k: sample(k) for k in "bcvw"}}
    assert differences(before, moved) == [
        "samples of train: 2 removed (first: images/b)",
        "samples of val: 2 added (first: images/b)",
    ]
