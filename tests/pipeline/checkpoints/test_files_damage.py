"""A damaged checkpoint is never loaded: the one before it is loaded instead, with a warning; if there is none, nothing is."""

import dataclasses
import json
import logging
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.files import entry_of
from pipeline.config.base import Storage
from pipeline.errors import CheckpointError, StorageError
from pipeline.storage.store import Store, open_store
from tests.support.checkpoints import Net, equal, latest, saved
from tests.support.faulty_store import FaultyStore

MODEL, PROGRESS, MANIFEST = checkpoint.MODEL, checkpoint.PROGRESS, checkpoint.MANIFEST


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Checkpoints of steps 10 and 20."""
    store = Store(str(tmp_path / "store"))
    saved(store, tmp_path, 10)
    saved(store, tmp_path, 20, miou=0.9)
    return store


def rewritten(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], object]:
    """Damage to the manifest's content that keeps its JSON format."""

    def damage(folder: Path) -> None:
        tree = json.loads((folder / MANIFEST).read_text())
        change(tree)
        (folder / MANIFEST).write_text(json.dumps(tree, indent=1))

    return damage


def listed_again(folder: Path, file: str, data: bytes) -> None:
    """Replaces the content of a file and updates its entry in the manifest."""
    (folder / file).write_bytes(data)
    rewritten(lambda tree: tree[file].update(entry_of(data)._asdict()))(folder)


def one_blank_changed(manifest: Path) -> bytes:
    return manifest.read_bytes().replace(b"\n", b" ", 1)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated": (f"{MODEL}: .* do not match", lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:-5])),
    "empty": (f"{MODEL}: 0 bytes", lambda f: (f / MODEL).write_bytes(b"")),
    "longer": (f"{PROGRESS}: .* do not match", lambda f: (f / PROGRESS).write_bytes((f / PROGRESS).read_bytes() + b" ")),
    "missing model": (f"{MODEL}: missing", lambda f: (f / MODEL).unlink()),
    "missing progress": (f"{PROGRESS}: missing", lambda f: (f / PROGRESS).unlink()),
    "no manifest": (f"{MANIFEST}: missing", lambda f: (f / MANIFEST).unlink()),
    "empty manifest": (f"{MANIFEST}: not valid JSON", lambda f: (f / MANIFEST).write_text("")),
    "garbage manifest": (f"{MANIFEST}: not valid JSON", lambda f: (f / MANIFEST).write_bytes(b"\xff\x00{")),
    "deep manifest": (f"{MANIFEST}: not valid JSON", lambda f: (f / MANIFEST).write_bytes(b"[" * 200_000)),
    "another blank": (
        f"{MANIFEST}: not as it was written",
        lambda f: (f / MANIFEST).write_bytes(one_blank_changed(f / MANIFEST)),
    ),
    "list manifest": (f"{MANIFEST}: must be a JSON object, not list", lambda f: (f / MANIFEST).write_text("[]")),
    "no entries": (f"{MANIFEST}: lists no file", lambda f: (f / MANIFEST).write_text("{}")),
    "wrong entry": (f"{MANIFEST}: must give", rewritten(lambda tree: tree[MODEL].pop("bytes"))),
    "wrong size": (f"{MODEL}: .* do not match", rewritten(lambda tree: tree[MODEL].update(bytes=1))),
    "wrong name": (f"{MANIFEST}: lists", rewritten(lambda tree: tree.update(weights=tree.pop(MODEL)))),
    "outside": (f"{MANIFEST}: lists", rewritten(lambda tree: tree.update({f"../step-000010/{MODEL}": tree.pop(MODEL)}))),
    "besides": (f"{MANIFEST}: lists", rewritten(lambda tree: tree.update({"/etc/hostname": tree[MODEL]}))),
    "no tensors": (f"{MODEL}: not in the safetensors format", lambda f: listed_again(f, MODEL, b"garbage")),
    "garbage progress": (f"{PROGRESS}: not valid JSON", lambda f: listed_again(f, PROGRESS, b"{")),
    "no step": (f"{PROGRESS}: has no `step`", lambda f: listed_again(f, PROGRESS, b"{}")),
    "other metrics": (
        f"{PROGRESS}: `metrics` is no JSON object; either damaged or written by another",
        lambda f: listed_again(f, PROGRESS, b'{"step": 20, "metrics": null}'),
    ),
    "a score in words": (
        f"{PROGRESS}: its miou is no number",
        lambda f: listed_again(f, PROGRESS, b'{"step": 20, "metrics": {"miou": "high"}}'),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault, damaged = DAMAGE[damage]
    damaged(Path(store.root, "step-000020"))
    with caplog.at_level(logging.WARNING):
        found = latest(store)
    assert found is not None
    assert found.step == 10
    [message] = caplog.messages
    expected = f"checkpoint skipped: {store.root}/step-000020/{fault}.*; loaded instead: {store.root}/step-000010"
    assert re.fullmatch(expected, message)


def content(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "no manifest"])
def test_if_none_can_be_read_each_is_named_and_left_as_it_is(store: Store, damage: str) -> None:
    fault, damaged = DAMAGE[damage]
    for step in (10, 20):
        damaged(Path(store.root, checkpoint.folder_name(step)))
    before = content(store)
    expected = (
        rf"{store.root}/: holds .* none .* \({store.root}/step-000020/{fault}.*; {store.root}/step-000010/{fault}.*\); nothing"
    )
    with pytest.raises(CheckpointError, match=expected) as raised:
        latest(store)
    assert "put back a copy of one" in str(raised.value)
    if damage != "no tensors":  # its bytes are those of its manifest, so pruning takes it for whole
        checkpoint.prune(store, 1)
    assert content(store) == before


def test_a_manifest_of_a_later_version_is_said_to_be_one(store: Store) -> None:
    for step in (10, 20):
        store.write(f"{checkpoint.folder_name(step)}/{MANIFEST}", b'{"version": 2, "files": {}}')
    for read in (latest, checkpoint.newest_progress, checkpoint.load_best):
        with pytest.raises(CheckpointError, match=f"step-000020/{MANIFEST}: .*written by another, perhaps later, version"):
            read(store)


def test_files_of_another_program_are_no_unfinished_upload(store: Store, tmp_path: Path) -> None:
    shards = Store(f"{store.root}-of-a-later-version")
    shards.write("step-000030/index.json", b"{}")
    shards.write("step-000030/model-00001.safetensors", b"")
    with pytest.raises(CheckpointError, match=rf"step-000030: holds index.json, .* and no {MANIFEST}; .* later, version"):
        checkpoint.latest_step(shards)


@pytest.mark.parametrize("also", [[], [".DS_Store"], [f".{'0' * 32}.tmp"]])
def test_uploads_that_did_not_end_are_a_new_run(store: Store, also: list[str]) -> None:
    for step in (10, 20):
        Path(store.root, checkpoint.folder_name(step), MANIFEST).unlink()
    for file in also:
        store.write(f"step-000010/{file}", b"")
    assert latest(store) is None
    assert checkpoint.newest_progress(store) is None
    assert checkpoint.load_best(store) is None


@pytest.mark.parametrize("damage", ["truncated", "wrong name", "empty manifest"])
def test_one_that_cannot_be_read_is_set_aside_when_its_place_is_needed(
    store: Store, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(store.root, "step-000020")
    for number in (1, 2):
        DAMAGE[damage][1](folder)
        (folder / "notes.txt").write_text(f"mine {number}")
        held = {file.name: file.read_bytes() for file in folder.iterdir()}
        saved(store, tmp_path, 20)
        assert checkpoint.latest_step(store) == 20
        aside = Path(store.root, "set-aside", "step-000020" if number == 1 else "step-000020-2")
        assert {file.name: file.read_bytes() for file in aside.iterdir()} == held
        assert caplog.messages[-1].endswith(f"; its place is needed, so it was moved to {aside}")
    assert not (folder / "notes.txt").exists()


def test_an_upload_over_an_unfinished_or_a_sound_one_sets_nothing_aside(store: Store, tmp_path: Path) -> None:
    Path(store.root, "step-000010", MANIFEST).unlink()
    for step in (10, 20):
        saved(store, tmp_path, step)
        checkpoint.verify(store, checkpoint.folder_name(step))
    assert not Path(store.root, "set-aside").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing model", "missing progress", "no manifest", "no step"])
def test_damage_that_is_found_without_reading_the_weights_does_not_hide_the_one_before(store: Store, damage: str) -> None:
    DAMAGE[damage][1](Path(store.root, "step-000020"))
    assert checkpoint.best(store) == "step-000010"
    newest = checkpoint.newest_progress(store)
    assert newest is not None
    assert newest["step"] == 10


def test_a_record_with_one_digit_changed_is_no_record(store: Store) -> None:
    record = Path(store.root, "step-000010", PROGRESS)
    record.write_text(record.read_text().replace("0.5", "9.5"))
    assert checkpoint.best(store) == "step-000020"


def test_a_best_one_with_a_changed_bit_gives_way_to_the_next(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    flip(Path(store.root, "step-000020", MODEL))
    assert checkpoint.best(store) == "step-000020"
    found = checkpoint.load_best(store)
    assert found is not None
    assert found.step == 10
    assert caplog.messages[-1].endswith(f"loaded instead: {store.root}/step-000010")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Net]:
    """Checkpoints of steps 10 and 20, and the network of step 10."""
    scratch = tmp_path_factory.mktemp("pair")
    store = Store(str(scratch / "store"))
    net = saved(store, scratch, 10, averaged=True)
    saved(store, scratch, 20, averaged=True)
    newest = latest(store)
    assert newest is not None
    assert newest.step == 20
    return store, net


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_byte_changed_and_any_truncation_is_noticed(pair: tuple[Store, Net], data: st.DataObject) -> None:
    store, net = pair
    path = data.draw(st.sampled_from(sorted(Path(store.root, "step-000020").iterdir())))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(0, 255))  # 0: truncate the file there
    path.write_bytes(whole[:place] + (bytes([whole[place] ^ change]) + whole[place + 1 :] if change else b""))
    try:
        found = latest(store)
    finally:
        path.write_bytes(whole)
    assert found is not None
    assert found.step == 10
    assert equal(found.model, net.state_dict())


def test_each_candidate_is_loaded_once(endpoint: str, credentials: None, tmp_path: Path) -> None:
    bucket = open_store(f"s3://bucket-{secrets.token_hex(4)}/run", Storage(path="unused", endpoint=endpoint))
    bucket._fs().mkdir(bucket.root.split("/")[2])
    for step in (10, 20, 30):
        saved(bucket, tmp_path, step)
    bucket.write(f"step-000030/{MODEL}", b"torn")
    with FaultyStore(endpoint) as proxy:
        found = checkpoint.latest_step(dataclasses.replace(bucket, endpoint=proxy.endpoint))
    assert found == 20
    read = sorted(line.split()[1].partition("/run/")[2] for line in proxy.lines if line.startswith("GET ") and "step-" in line)
    files = [checkpoint.MANIFEST, checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.PROGRESS]
    assert read == [*(f"step-000020/{file}" for file in files), f"step-000030/{MANIFEST}", f"step-000030/{MODEL}"]


def test_a_store_that_refuses_is_no_reason_to_take_an_older_one(endpoint: str, credentials: None, tmp_path: Path) -> None:
    bucket = open_store(f"s3://bucket-{secrets.token_hex(4)}/run", Storage(path="unused", endpoint=endpoint))
    bucket._fs().mkdir(bucket.root.split("/")[2])
    for step in (10, 20):
        saved(bucket, tmp_path, step)
    with FaultyStore(endpoint, aimed={f"GET .*step-000020/{MODEL}": "forbid"}) as proxy:
        sick = dataclasses.replace(bucket, endpoint=proxy.endpoint)
        with pytest.raises(StorageError, match=rf"step-000020/{MODEL}.*access refused"):
            latest(sick)
