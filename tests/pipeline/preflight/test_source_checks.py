"""A data set whose source has changed since it was prepared says what changed, and how to take it over."""

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import override
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.prepare import prepare
from pipeline.data.source.record import record_key
from pipeline.images.codec import encode_png
from pipeline.preflight.findings import Finding
from pipeline.preflight.source_checks import AGAIN, source
from pipeline.storage.store import Store, open_store
from tests.support.folders import config, noise, rows_of, write

CLASSES = "[road, car, tree]"
ALL = rows_of(0, 1, 2)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The source, with three training and two validation samples."""
    local = write(tmp_path / "made", CLASSES, [ALL] * 3, [ALL] * 2)
    if request.param == "folder":
        return Store(str(local))
    request.getfixturevalue("credentials")
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("endpoint"))
    bucket = f"source-{secrets.token_hex(4)}"
    store = open_store(f"s3://{bucket}/set", config(tmp_path, "unused").storage)
    store._fs().mkdir(bucket)
    for file in local.rglob("*.*"):
        store.write(str(file.relative_to(local)), file.read_bytes())
    return store


def findings(root: Path, address: str, manifest: Manifest, *, resumed: bool = False, **data: Any) -> list[Finding]:
    return source(config(root, address, **data), manifest, resumed=resumed)


@pytest.mark.parametrize("packed", [True, False])
def test_what_changed_in_the_source_is_an_error_with_the_command(place: Store, tmp_path: Path, packed: bool) -> None:
    manifest = prepare(config(tmp_path, place.root, packed=packed))
    assert findings(tmp_path, place.root, manifest, packed=packed) == []
    place.write("masks/train/1.png", encode_png(rows_of(0, 1)))  # a mask is corrected
    for name in "abc":
        place.write(f"images/train/{name}.png", encode_png(noise(ord(name))))
        place.write(f"masks/train/{name}.png", encode_png(ALL))
    for kind in ("images", "masks"):
        place.delete(f"{kind}/val/1.png")
    what = (
        f"data.source = {place.root}: changed since jobs.prepare: samples of train: 3 added (first: images/train/a.png), "
        "1 changed (first: masks/train/1.png); samples of val: 1 removed (first: images/val/1.png)"
    )
    assert findings(tmp_path, place.root, manifest, packed=packed) == [Finding("error", what, AGAIN)]
    (warned,) = findings(tmp_path, place.root, manifest, packed=packed, resumed=True)
    assert (warned.level, warned.what) == ("warning", what)
    assert warned.fix.startswith("this run resumes with the data as prepared")
    again = prepare(config(tmp_path, place.root, packed=packed))
    assert again.fingerprint != manifest.fingerprint
    assert findings(tmp_path, place.root, again, packed=packed) == []


def test_a_file_that_no_sample_uses_is_no_change(place: Store, tmp_path: Path) -> None:
    manifest = prepare(config(tmp_path, place.root))
    place.write("notes.txt", b"new")
    assert findings(tmp_path, place.root, manifest) == []


def test_a_class_that_is_added_renamed_or_renumbered_is_named(place: Store, tmp_path: Path) -> None:
    manifest = prepare(config(tmp_path, place.root))
    for text, change in (
        ("[road, car, tree, sky]", "added sky"),
        ("[road, car, bush]", "added bush, removed tree"),
        ("classes: [{id: 0, name: road}, {id: 1, name: car}, {id: [2, 3], name: tree}]", "other ids"),
        ("classes: [{id: 0, name: road, color: [9, 9, 9]}, {id: 1, name: car}, {id: 2, name: tree}]", "other colours"),
    ):
        place.write("classes.yaml", text.encode())
        what = f"data.source = {place.root}: changed since jobs.prepare: classes: {change}"
        assert findings(tmp_path, place.root, manifest) == [Finding("error", what, AGAIN)]


def test_another_folder_is_an_error_unless_it_holds_the_same_files(tmp_path: Path) -> None:
    first = write(tmp_path / "first", CLASSES, [ALL] * 3, [ALL] * 2)
    manifest = prepare(config(tmp_path, first))
    other = write(tmp_path / "other", CLASSES, [rows_of(0, 1)] * 3, [ALL])
    (found,) = findings(tmp_path, str(other), manifest)
    assert found.level == "error"
    assert found.what.startswith(
        f"data.source = {other}: the data were prepared from {first}, and differ: samples of train: 3 changed"
    )
    shutil.copytree(first, tmp_path / "moved", copy_function=shutil.copy2)
    assert findings(tmp_path, str(tmp_path / "moved"), manifest) == []


@pytest.mark.parametrize("resumed", [True, False])
def test_a_source_that_is_gone_is_an_error_only_in_place(tmp_path: Path, resumed: bool) -> None:
    folder = write(tmp_path / "source", CLASSES, [ALL] * 3, [ALL] * 2)
    for packed, level in ((True, "warning"), (False, "error")):
        manifest = prepare(config(tmp_path, folder, packed=packed))
        (found,) = findings(tmp_path, "/nowhere", manifest, packed=packed, resumed=resumed)
        assert found.level == level
        assert found.what.startswith("data.source: /nowhere: ")


def test_a_source_that_no_longer_pairs_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", CLASSES, [ALL] * 3, [ALL] * 2)
    manifest = prepare(config(tmp_path, folder))
    (folder / "masks/train/0.png").unlink()
    (found,) = findings(tmp_path, str(folder), manifest)
    assert found.level == "error"
    assert f"since jobs.prepare it has faults: {folder}/images/train/0.png: image without label" in found.what


def test_other_splits_of_the_same_files_are_a_change(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", CLASSES, [ALL] * 3, [ALL] * 2)
    lists = {"val": "own.txt"}
    (folder / "own.txt").write_text("images/val/0.png masks/val/0.png\nimages/val/1.png masks/val/1.png\n")
    manifest = prepare(config(tmp_path, folder, lists=lists))
    assert findings(tmp_path, str(folder), manifest, lists=lists) == []
    (folder / "own.txt").write_text("images/val/0.png masks/val/0.png\nimages/train/1.png masks/train/1.png\n")
    (found,) = findings(tmp_path, str(folder), manifest, lists=lists)
    assert found.what.endswith("val: 1 changed (first: images/train/1.png)")


def test_a_time_that_changes_is_a_change_and_preparing_again_keeps_the_fingerprint(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", CLASSES, [ALL] * 3, [ALL] * 2)
    manifest = prepare(config(tmp_path, folder))
    os.utime(folder / "masks/train/0.png", (1, 1))
    (found,) = findings(tmp_path, str(folder), manifest)
    assert found.what.endswith("train: 1 changed (first: masks/train/0.png)")
    assert prepare(config(tmp_path, folder)).fingerprint == manifest.fingerprint


def test_settings_that_change_no_sample_are_no_change(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", CLASSES, [ALL] * 3, [ALL] * 2)
    manifest = prepare(config(tmp_path, folder))
    assert findings(tmp_path, str(folder), manifest, shard_rows=1) == []


def test_a_data_set_without_a_record_is_doubted_and_gets_one_from_prepare(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", CLASSES, [ALL] * 3, [ALL] * 2)
    made = config(tmp_path, folder)
    manifest, store = prepare(made), open_store(made.data_url, made.storage)
    store.delete(record_key(manifest))
    assert findings(tmp_path, str(folder), manifest) == []
    (found,) = findings(tmp_path, str(folder), manifest, shard_rows=1)
    assert (found.level, found.fix) == ("warning", AGAIN)
    assert "kept no record of its files" in found.what
    assert prepare(made) == read_manifest(store) == manifest
    assert store.exists(record_key(manifest))


def test_other_generated_images_are_named(tmp_path: Path) -> None:
    small = {"layout": "generated", "generated": {"num_train": 4, "num_val": 2, "size": 33}, "source": None}
    made = override(config(tmp_path, "unused"), {f"data.{key}": value for key, value in small.items()})
    manifest = prepare(made)
    assert source(made, manifest, resumed=False) == []
    larger = override(made, {"data.generated": {"num_train": 5, "num_val": 2, "size": 65}})
    (found,) = source(larger, manifest, resumed=False)
    assert found == Finding("error", "data.generated: num_train is 5, prepared with 4; size is 65, prepared with 33", AGAIN)
