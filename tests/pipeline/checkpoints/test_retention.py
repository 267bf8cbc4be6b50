"""Pruning keeps the best and the newest checkpoints, and always one that verifies if there is any."""

import dataclasses
import logging
import secrets
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import MANIFEST, MODEL, folder_name
from pipeline.config.base import Storage
from pipeline.errors import CheckpointError, StorageError
from pipeline.storage.store import Object, Store, open_store
from tests.support.checkpoints import latest, saved
from tests.support.faulty_store import FaultyStore


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def bucket(endpoint: str, credentials: None) -> Store:
    store = open_store(f"s3://bucket-{secrets.token_hex(4)}/runs/tiny", Storage(path="unused", endpoint=endpoint))
    store._fs().mkdir(store.root.split("/")[2])
    return store


def held(store: Store) -> list[int]:
    """Steps of the folders that hold anything."""
    return sorted({int(key.split("/")[0].removeprefix("step-")) for key in store.list()})


def flip(store: Store, step: int) -> None:
    data = bytearray(store.read(f"{folder_name(step)}/{MODEL}"))
    data[-1] ^= 1
    store.write(f"{folder_name(step)}/{MODEL}", bytes(data))


def test_the_best_and_the_newest_stay(store: Store, tmp_path: Path) -> None:
    for step, miou in ((10, 0.1), (20, 0.9), (30, 0.2), (40, 0.3), (50, 0.4)):
        saved(store, tmp_path, step, miou)
    store.write("snapshot.json", b"Ray's own")
    checkpoint.prune(store, 2)
    store.delete("snapshot.json")
    assert held(store) == [20, 40, 50]
    assert checkpoint.best(store) == "step-000020"


def test_in_a_bucket_too(bucket: Store, tmp_path: Path) -> None:
    for step, miou in ((10, 0.1), (20, 0.9), (30, 0.2), (40, 0.3)):
        saved(bucket, tmp_path, step, miou)
    checkpoint.prune(bucket, 1)
    assert held(bucket) == [20, 40]


def test_one_without_a_score_is_among_the_newest_and_not_the_best(store: Store, tmp_path: Path) -> None:
    for step, miou in ((10, None), (20, 0.1), (30, 0.2), (40, None)):
        saved(store, tmp_path, step, miou)
    checkpoint.prune(store, 1)
    assert held(store) == [30, 40]


def test_torn_ones_go_when_a_newer_one_verifies_and_do_not_count(store: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        saved(store, tmp_path, step, miou=step / 100)
    for step in (20, 40):
        Path(store.root, folder_name(step), MANIFEST).unlink()
    checkpoint.prune(store, 2)
    assert held(store) == [10, 30, 40]


def test_the_only_one_that_verifies_stays(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20, 30):
        saved(store, tmp_path, step, miou=step / 100)
    flip(store, 20)
    flip(store, 30)
    checkpoint.prune(store, 1)
    found = latest(store)
    assert found is not None
    assert found.step == 10
    assert "step-000030/model.safetensors: the manifest lists" in caplog.text
    flip(store, 10)
    checkpoint.prune(store, 1)
    assert held(store) == [10, 20, 30]  # none verifies, so nothing is deleted
    saved(store, tmp_path, 40, miou=0.4)
    checkpoint.prune(store, 1)
    assert held(store) == [40]


def test_one_that_mlflow_refers_to_stays(store: Store, tmp_path: Path) -> None:
    for step, miou in ((10, 0.1), (20, 0.2)):
        saved(store, tmp_path, step, miou)
    checkpoint.mark_kept(store, "step-000010", "version 1 of a model")
    for step, miou in ((30, 0.3), (40, 0.4)):
        saved(store, tmp_path, step, miou)
    checkpoint.prune(store, 1)
    assert held(store) == [10, 40]
    checkpoint.verify(store, "step-000010")


def test_what_cannot_be_read_and_what_others_wrote_stays(store: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        saved(store, tmp_path, step, miou=step / 100)
    store.write("step-000010/manifest.json", b'{"version": 2}')
    store.write("step-000020/model.safetensors", b"cut")
    store.write("step-000030/model.onnx", b"the user's own")
    checkpoint.prune(store, 1)
    assert held(store) == [10, 20, 30, 40]
    assert [len(store.list(folder_name(step))) for step in (10, 20, 30, 40)] == [4, 4, 5, 4]


def test_nothing_is_left_of_one_that_is_deleted(store: Store, tmp_path: Path) -> None:
    for step in (10, 20):
        saved(store, tmp_path, step)
    store.write(f"step-000010/.{'0' * 32}.tmp", b"of a killed writer")
    saved(store, tmp_path, 5)
    store.write("step-000005/.hidden", b"of a desktop")
    checkpoint.prune(store, 1)
    assert not Path(store.root, "step-000010").exists()
    assert store.list() == ["step-000005/.hidden", *store.list("step-000020")]
    assert checkpoint.newest_progress(store) == {"step": 20, "metrics": {"miou": 0.5}}


def test_between_validations_only_the_newest_stay(store: Store, tmp_path: Path) -> None:
    saved(store, tmp_path, 10, 0.5)
    for step in (20, 30, 40, 50):
        saved(store, tmp_path, step, None, score_pending=step == 30)
    checkpoint.prune(store, 1)
    assert held(store) == [10, 30, 50]


def test_what_was_just_stored_is_not_read_again(bucket: Store, endpoint: str, tmp_path: Path) -> None:
    for step in (10, 20):
        saved(bucket, tmp_path, step)
    with FaultyStore(endpoint) as proxy:
        store = dataclasses.replace(bucket, endpoint=proxy.endpoint)
        checkpoint.prune(store, 2, stored="step-000020")
        assert not any(line.startswith("GET ") and MODEL in line for line in proxy.lines)
        checkpoint.prune(store, 2)
        assert sum(line.startswith("GET ") and MODEL in line for line in proxy.lines) == 1
    assert held(bucket) == [10, 20]


@pytest.mark.parametrize(
    ("fault", "words"), [("forbid", "access refused"), ("forget", "was deleted without an error and is still there")]
)
def test_a_deletion_that_fails_is_a_warning(
    bucket: Store, endpoint: str, tmp_path: Path, fault: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        saved(bucket, tmp_path, step)
    with FaultyStore(endpoint, aimed={rf"^DELETE .*{MANIFEST}": fault}) as proxy, caplog.at_level(logging.WARNING):
        checkpoint.prune(dataclasses.replace(bucket, endpoint=proxy.endpoint), 1)
    assert proxy.injected == {fault: 1}
    assert f"old checkpoint not deleted: {bucket.root}/step-000010/{MANIFEST}" in caplog.text
    assert words in caplog.text
    checkpoint.verify(bucket, "step-000010")
    checkpoint.prune(bucket, 1)
    assert held(bucket) == [20]


def test_a_store_that_does_not_answer_is_a_warning(
    bucket: Store, endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        saved(bucket, tmp_path, step)
    with FaultyStore(endpoint, aimed={"^GET .*list-type": "forbid"}) as proxy:
        checkpoint.prune(dataclasses.replace(bucket, endpoint=proxy.endpoint), 1)
    assert proxy.injected["forbid"]
    assert caplog.messages[-1].startswith(f"old checkpoints not checked: {bucket.root}")
    assert held(bucket) == [10, 20]


class Half(Store):
    """A store that deletes manifests and refuses to delete anything else."""

    def delete(self, prefix: str) -> None:
        if not prefix.endswith(MANIFEST):
            raise StorageError(f"{self.url(prefix)}: refused")
        super().delete(prefix)


def test_one_that_is_deleted_by_half_is_not_taken_for_whole(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        saved(store, tmp_path, step)
    checkpoint.prune(Half(store.root), 1)
    assert caplog.messages == [f"old checkpoint not deleted: {store.root}/step-000010/model.safetensors: refused"]
    assert held(store) == [10, 20]
    with pytest.raises(CheckpointError, match=r"manifest\.json: missing"):
        checkpoint.load(store, "step-000010")


class Early(Store):
    """A store whose listing was made before the rest of the checkpoints was uploaded."""

    def listing(self, prefix: str = "") -> list[Object]:
        return [found for found in super().listing(prefix) if found.key.endswith(MODEL)]


def test_an_upload_that_ends_after_the_listing_is_no_damage(store: Store, tmp_path: Path) -> None:
    saved(store, tmp_path, 10)
    assert checkpoint.newest_progress(Early(store.root)) is None
    assert checkpoint.load_best(Early(store.root)) is None
    assert checkpoint.latest_step(Early(store.root)) == 10


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """`<score>/step-...`: six checkpoints for each of three scores."""
    folder = tmp_path_factory.mktemp("templates")
    for score in (None, 0.1, 0.2):
        for step in range(6):
            saved(Store(str(folder / str(score))), folder, step, score)
    return Store(str(folder))


def found(store: Store) -> str | None:
    """What a training would do: the URL of the checkpoint it would resume from, None for a start at step 0, or the error."""
    try:
        newest = latest(store)
    except CheckpointError as error:
        return str(error)
    return newest and newest.url


RUNS = st.lists(
    st.tuples(st.sampled_from([None, 0.1, 0.2]), st.sampled_from(["whole", "whole", "flipped", "cut", "no manifest"])), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(run=RUNS, keep=st.integers(1, 3))
def test_whatever_a_run_left_the_newest_whole_one_and_the_best_stay(
    templates: Store, tmp_path_factory: pytest.TempPathFactory, run: list[tuple[Any, str]], keep: int
) -> None:
    store = Store(str(tmp_path_factory.mktemp("run") / "store"))
    for step, (score, damage) in enumerate(run):
        shutil.copytree(templates.join(str(score), folder_name(step)).root, store.url(folder_name(step)))
        if damage == "flipped":
            flip(store, step)
        elif damage == "cut":
            store.write(f"{folder_name(step)}/{MODEL}", b"cut")
        elif damage == "no manifest":
            store.delete(f"{folder_name(step)}/{MANIFEST}")
    whole = [step for step, (_, damage) in enumerate(run) if damage == "whole"]
    before = found(store)
    checkpoint.prune(store, keep)
    left = held(store)
    assert found(store) == before
    if not whole:
        assert left == list(range(len(run)))
        return
    newest = whole[-1]
    older = [step for step in left if step <= newest]
    assert left[len(older) :] == list(range(newest + 1, len(run)))  # their uploads may still be running
    given = [
        step
        for step, (score, damage) in enumerate(run)
        if damage in ("whole", "flipped") and score is not None and step <= newest
    ]
    awaited = [step for step in older if step > max(given, default=-1)]
    unreadable = [step for step, (_, damage) in enumerate(run) if damage == "cut" and step <= newest]
    assert len(older) <= keep + 1 + len(awaited) + len(unreadable)
    assert not any(run[step][1] == "no manifest" for step in older)
    assert set(unreadable) <= set(older)
    if all(damage == "whole" for _, damage in run[: newest + 1]):
        assert older[-keep:] == list(range(newest + 1))[-keep:]
        scored = [(score, step) for step, (score, _) in enumerate(run) if score is not None and step <= newest]
        assert not scored or max(scored)[1] in older
    checkpoint.prune(store, keep)
    assert held(store) == left
