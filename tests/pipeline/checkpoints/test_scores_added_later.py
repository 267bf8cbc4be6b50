"""The score of a checkpoint that was stored before it was validated: used only if it is whole and of that checkpoint."""

import json
import logging
import re
import secrets
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import folder_name
from pipeline.checkpoints.files import SCORE, read_manifest
from pipeline.config.base import Storage
from pipeline.errors import CheckpointError
from pipeline.storage.store import Store, open_store
from pipeline.training.checkpointing import RunRecord
from tests.support.checkpoints import saved
from tests.support.faulty_store import FaultyStore


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Checkpoints of step 10, with mIoU 0.5, and of step 20, not validated."""
    store = Store(str(tmp_path / "store"))
    saved(store, tmp_path, 10, 0.5)
    saved(store, tmp_path, 20, None)
    return store


def give(store: Store, step: int, miou: float) -> None:
    sha256, _ = read_manifest(store, folder_name(step))
    checkpoint.write_score(store, folder_name(step), sha256, {"miou": miou}, {"num_images": 3})


def held(store: Store) -> list[int]:
    return sorted({int(key.split("/")[0].removeprefix("step-")) for key in store.list()})


def test_a_checkpoint_reads_as_if_its_score_had_been_in_it_from_the_start(store: Store) -> None:
    assert (checkpoint.best(store), checkpoint.unscored(store)) == ("step-000010", [20])
    give(store, 20, 0.7)
    assert (checkpoint.best(store), checkpoint.unscored(store)) == ("step-000020", [])
    best, newest = checkpoint.load_best(store), checkpoint.newest_progress(store)
    assert best is not None
    assert best.progress == newest == checkpoint.load(store, "step-000020").progress
    assert (best.progress["metrics"], best.progress["score"]) == ({"num_images": 3, "miou": 0.7}, {"num_images": 3})
    checkpoint.verify(store, "step-000020")


def test_a_score_in_the_checkpoint_itself_is_not_replaced(store: Store) -> None:
    give(store, 10, 0.9)
    assert checkpoint.load(store, "step-000010").progress["metrics"] == {"miou": 0.5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"manifest_sha256": "0" * 64}, "belongs to another checkpoint of this name"),
        ({"metrics": {"miou": None}}, "must give `metrics` with a miou, and `score`"),
        ({"metrics": [0.7]}, "must give `metrics`"),
        ({"score": None}, "must give `metrics`"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
    ],
)
def test_a_score_that_is_garbled_or_anothers_is_none(
    store: Store, change: dict[str, Any] | bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    give(store, 20, 0.7)
    key = f"step-000020/{SCORE}"
    store.write(key, change if isinstance(change, bytes) else json.dumps(json.loads(store.read(key)) | change).encode())
    with caplog.at_level(logging.WARNING):
        assert checkpoint.best(store) == "step-000010"
    assert re.search(rf"score ignored: .*{SCORE}: {re.escape(words)}", caplog.text)
    assert checkpoint.unscored(store) == [20]
    assert checkpoint.load(store, "step-000020").step == 20


def test_a_score_that_the_store_loses_is_an_error(endpoint: str, credentials: None, tmp_path: Path) -> None:
    bucket = open_store(f"s3://bucket-{secrets.token_hex(4)}/run", Storage(path="unused", endpoint=endpoint))
    bucket._fs().mkdir(bucket.root.split("/")[2])
    saved(bucket, tmp_path, 20, None)
    with FaultyStore(endpoint, aimed={rf"^PUT .*{SCORE}": "forget"}) as proxy:
        losing = Store(bucket.root, proxy.endpoint)
        with pytest.raises(CheckpointError, match=rf"{SCORE}: \d+ bytes were written but the store holds 0"):
            give(losing, 20, 0.7)
    give(bucket, 20, 0.7)
    assert checkpoint.best(bucket) == "step-000020"


def test_one_whose_score_may_be_on_its_way_is_kept_until_a_newer_one_has_one(store: Store, tmp_path: Path) -> None:
    for step in (30, 40):
        saved(store, tmp_path, step, None)
    checkpoint.prune(store, 1)
    assert held(store) == [10, 20, 30, 40]
    give(store, 30, 0.4)
    checkpoint.prune(store, 1)
    assert held(store) == [10, 40]  # the best, and the newest


def test_patience_counts_a_checkpoints_own_score() -> None:
    before = RunRecord(best=0.6, since_best=1).json()
    assert RunRecord.of({"record": before, "metrics": {}}) == RunRecord(best=0.6, since_best=1)
    assert RunRecord.of({"record": before, "metrics": {"miou": 0.5}}) == RunRecord(best=0.6, since_best=2)
    assert RunRecord.of({"record": before, "metrics": {"miou": 0.7}}) == RunRecord(best=0.7, since_best=0)
