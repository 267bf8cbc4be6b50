"""Uploads of checkpoints to a real S3 server (moto): each file is read back, even if the server reported success."""

import dataclasses
import secrets
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import MANIFEST, MODEL, OPTIMIZER, PROGRESS
from pipeline.config.base import Storage
from pipeline.errors import CheckpointError, StorageError
from pipeline.storage.store import Store, open_store
from tests.support.checkpoints import equal, latest, saved, trained
from tests.support.faulty_store import FaultyStore

pytestmark = pytest.mark.usefixtures("credentials")
MIB = 2**20


@pytest.fixture
def bucket(endpoint: str) -> Store:
    store = open_store(f"s3://bucket-{secrets.token_hex(4)}/runs/tiny", Storage(path="unused", endpoint=endpoint))
    store._fs().mkdir(store.root.split("/")[2])
    return store


def behind(proxy: FaultyStore, bucket: Store) -> Store:
    return dataclasses.replace(bucket, endpoint=proxy.endpoint)


def test_files_go_first_and_the_manifest_last_each_read_back(bucket: Store, endpoint: str, tmp_path: Path) -> None:
    with FaultyStore(endpoint) as proxy:
        net = saved(behind(proxy, bucket), tmp_path, 10)
    done = [(line.split()[0], line.split()[1].rpartition("/")[2]) for line in proxy.lines if "step-" in line]
    assert done == [(verb, file) for file in (MODEL, OPTIMIZER, PROGRESS, MANIFEST) for verb in ("PUT", "HEAD", "GET")]
    found = latest(bucket)
    assert found is not None
    assert equal(found.model, net.state_dict())


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER, PROGRESS, MANIFEST])
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("length_required", StorageError, "411 MissingContentLength"),
        ("forget", CheckpointError, r"\d+ bytes were written but the store holds 0$"),
        ("shorten", CheckpointError, r"\d+ bytes were written but the store holds [1-9]\d*$"),
        ("flip", CheckpointError, r"\d+ bytes were written but the store holds other bytes: their sha256 differs$"),
    ],
)
def test_a_store_that_keeps_something_else_is_an_error(
    bucket: Store, endpoint: str, tmp_path: Path, file: str, fault: str, error: type[Exception], words: str
) -> None:
    saved(bucket, tmp_path, 10)
    with FaultyStore(endpoint, aimed={rf"^PUT .*/step-000020/{file}": fault}) as proxy:
        with pytest.raises(error, match=words) as caught:
            saved(behind(proxy, bucket), tmp_path, 20)
        assert proxy.injected == {fault: 1}
    assert str(caught.value).startswith(f"{bucket.root}/step-000020/{file}")
    found = latest(bucket)
    assert found is not None
    assert found.step == 10


def test_what_was_overwritten_by_less_than_before_is_noticed(bucket: Store, endpoint: str, tmp_path: Path) -> None:
    saved(bucket, tmp_path, 10, miou=0.1)
    with FaultyStore(endpoint, aimed={f"^PUT .*{PROGRESS}": "forget"}) as proxy, pytest.raises(CheckpointError, match=PROGRESS):
        saved(behind(proxy, bucket), tmp_path, 10, miou=0.9)


def test_a_local_file_that_changed_after_it_was_saved_is_noticed(bucket: Store, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    checkpoint.save(local, checkpoint.snapshot(*trained(1)), {"step": 10})
    (local / MODEL).write_bytes((local / MODEL).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{bucket.root}/step-000010/{MODEL}: \d+ bytes were written but"):
        checkpoint.upload(local, bucket, "step-000010")


def test_reading_back_is_in_pieces(bucket: Store, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.store.PIECE_BYTES", 100)
    with FaultyStore(endpoint) as proxy:
        saved(behind(proxy, bucket), tmp_path, 10)
    reads = sum(line.startswith("GET ") and MODEL in line for line in proxy.lines)
    assert reads == -(-bucket.size(f"step-000010/{MODEL}") // 100)
    assert reads > 2
    with FaultyStore(endpoint, aimed={f"^PUT .*{MODEL}": "flip"}) as proxy, pytest.raises(CheckpointError, match="sha256"):
        saved(behind(proxy, bucket), tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"), [("length_required", "411 MissingContentLength"), ("forget", "InvalidPart"), (None, "")]
)
def test_a_file_in_several_parts_is_stored_or_an_error(
    bucket: Store, endpoint: str, tmp_path: Path, fault: str | None, words: str
) -> None:
    large = {"weight": torch.arange(105 * MIB // 4, dtype=torch.int32)}  # more than 100 MiB: a multipart upload
    checkpoint.save(tmp_path, checkpoint.State(large, {}, {}), {"step": 10})
    with FaultyStore(endpoint, aimed={"^PUT .*partNumber=2": fault} if fault else {}) as proxy:
        store = behind(proxy, bucket)
        if fault:
            with pytest.raises(StorageError, match=words) as caught:
                checkpoint.upload(tmp_path, store, "step-000010")
            assert str(caught.value).startswith(f"{bucket.root}/step-000010/{MODEL}")
            assert bucket.list() == []
        else:
            checkpoint.upload(tmp_path, store, "step-000010")
            assert any("partNumber=2" in line for line in proxy.lines)
            assert equal(checkpoint.load(bucket, "step-000010").model, large)
