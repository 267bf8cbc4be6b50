"""One worker reads the store, all have what it read."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints import checkpoint
from pipeline.errors import StorageError
from pipeline.storage.store import Store
from pipeline.training.shared_load import load_once
from tests.support.checkpoints import saved
from tests.support.one_reader import NUM_WORKERS, text


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    saved(store, tmp_path, 10, averaged=True)
    return store


def loaded(store: Store, step: int, tmp_path: Path) -> list[str]:
    """What each of three workers got; only the first one has access to the store."""
    command = [sys.executable, "-m", "tests.support.one_reader", store.root, str(step), str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parents[3], check=True, timeout=120)
    return [(tmp_path / str(rank)).read_text() for rank in range(NUM_WORKERS)]


def test_every_worker_has_the_bits_that_the_first_one_read(store: Store, tmp_path: Path) -> None:
    assert loaded(store, 10, tmp_path) == [text(checkpoint.load(store, "step-000010"))] * NUM_WORKERS


def test_what_the_first_one_cannot_read_is_an_error_for_all(store: Store, tmp_path: Path) -> None:
    model = Path(store.root, "step-000010", checkpoint.MODEL)
    model.write_bytes(model.read_bytes()[:-1])
    first, *others = loaded(store, 10, tmp_path)
    assert first.startswith(f"StorageError: {model}: ")
    assert first.endswith("; it verified when this attempt began")
    assert (
        others == [first.replace("StorageError: ", "StorageError: worker 0 could not read for all workers: StorageError: ")] * 2
    )


def test_a_worker_alone_reads_for_itself(store: Store) -> None:
    assert text(load_once(store, 10, torch.device("cpu"))) == text(checkpoint.load(store, "step-000010"))
    with pytest.raises(StorageError, match="missing; it verified when this attempt began"):
        load_once(store, 20, torch.device("cpu"))
