"""Preparation says which files of the source it left out, and finds lists outside of the source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import prepare as job
from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.data.manifest import open_data
from pipeline.data.prepare import prepare, survey
from pipeline.data.source.find import find_source
from pipeline.errors import SourceError
from pipeline.images import codec
from pipeline.preflight import data_checks
from pipeline.storage.store import Store

IMAGE = codec.encode_png(np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3))
LABEL = codec.encode_png(np.arange(24 * 32, dtype=np.uint8).reshape(24, 32) % 2)


def source(root: Path, *extra: str) -> Store:
    store = Store(str(root))
    for split, stem in (("train", "a"), ("train", "b"), ("val", "v")):
        store.write(f"images/{split}/{stem}.png", IMAGE)
        store.write(f"masks/{split}/{stem}.png", LABEL)
    store.write("classes.yaml", b"[road, car]")
    for key in extra:
        store.write(key, b"x")
    return store


def config(root: Path, folder: str, **data: Any) -> Config:
    data = {"name": "toy", "layout": "folders", "source": folder, "crop_size": 33, **data}
    return parse({"name": "test", "storage": {"path": str(root / "out")}, "model": {"recurrence": 2}, "data": data})


def test_prepare_prints_the_account_and_warns_of_what_looks_like_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = source(tmp_path / "source", "images/train/c.heic", "masks/train/Thumbs.db")
    made = config(tmp_path, store.root)
    for _ in range(2):  # the second time, the data set is prepared already
        assert job.run(made) == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines()[1:4] == [
            "files           9 seen: images with labels: 2 in train, 1 in val; lists and class tables: 1; left out: 2",
            "left out        train: files .heic, which are not read (1): images/train/c.heic",
            "left out        train: hidden files, desktop files and unfinished copies (1): masks/train/Thumbs.db",
        ]
        assert printed.err.startswith(
            "warning: left out: train: files .heic, which are not read (1): images/train/c.heic (if they"
        )


def test_the_warnings_come_with_every_check_before_a_run(tmp_path: Path) -> None:
    made = config(tmp_path, source(tmp_path / "source", "images/train/c.heic").root)
    surveyed = survey(made)
    prepare(made)
    for manifest in (surveyed, open_data(made)):
        (found,) = [finding for finding in data_checks.examine(made, manifest) if "left out" in finding.what]
        assert (found.level, found.what) == (
            "warning", "left out: train: files .heic, which are not read (1): images/train/c.heic"
        )  # fmt: skip


def test_what_lies_beside_the_samples_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    store = source(tmp_path / "source")
    before = prepare(config(tmp_path, store.root))
    store.write("notes.txt", b"x")
    assert prepare(config(tmp_path, store.root)).fingerprint == before.fingerprint
    assert survey(config(tmp_path, store.root)).fingerprint == before.fingerprint


def test_a_list_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = source(tmp_path / "source")
    monkeypatch.setenv("HOME", str(tmp_path))
    Store(str(tmp_path)).write("mine/val.txt", b"images/train/b.png masks/train/b.png\n")
    store.write("lists/val.txt", b"images/train/b.png masks/train/b.png\n")
    for given in (
        f"{tmp_path}/mine/val.txt",
        "~/mine/val.txt",
        "../mine/val.txt",
        "lists/val.txt",
        f"{store.root}/lists/val.txt",
    ):
        found = find_source(config(tmp_path, store.root, lists={"val": given}))
        assert [pair.sample_id for pair in found.splits["val"]] == ["b"]  # type: ignore[union-attr]
    assert found.inventory is not None
    assert found.inventory.texts == ("classes.yaml", "lists/val.txt")


def test_a_list_that_is_nowhere_is_named_once(tmp_path: Path) -> None:
    store = source(tmp_path / "source")
    for given in (f"{tmp_path}/mine/val.txt", "mine/val.txt"):
        with pytest.raises(SourceError) as caught:
            find_source(config(tmp_path, store.root, lists={"val": given}))
        place = given if given.startswith("/") else f"{store.root}/{given}"
        fix = "write a path below data.source, a full path or an s3:// address"
        assert str(caught.value) == f"{place}: no such file: data.lists.val = {given}: {fix}"


def test_the_settings_of_suffix_and_fraction_reach_the_source(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "source"))
    for number in range(12):
        store.write(f"images/{number:02}.png", codec.encode_png(np.full((24, 32, 3), number, np.uint8)))
        for kind in ("labelIds", "trainIds"):
            store.write(f"masks/{number:02}_{kind}.png", LABEL)
    store.write("classes.yaml", b"[road, car]")
    found = find_source(config(tmp_path, store.root, label_suffix="_trainIds", val_fraction=0.3))
    assert {split: len(items) for split, items in found.splits.items()} == {"train": 7, "val": 5}
    assert all(key.endswith("_trainIds.png") for key in found.listing if key.startswith("masks/"))
