"""A checkpoint counts when its manifest matches every byte; a torn one is passed over."""

import json
import logging
from pathlib import Path

import pytest
import torch

from ccnet.optim import build_optimizer
from pipeline import checkpoint
from pipeline.settings import Storage
from pipeline.storage import Store, open_store


def trained(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = build_optimizer(net, 0.1, 0.9, 1e-4)
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return net, optimizer


def saved(store: Store, folder: Path, step: int, miou: float = 0.5) -> torch.nn.Module:
    net, optimizer = trained(step)
    (folder / str(step)).mkdir()
    checkpoint.save(folder / str(step), net, optimizer, {"step": step, "metrics": {"miou": miou}})
    checkpoint.upload(folder / str(step), store, checkpoint.folder_name(step))
    return net


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), Storage(path=str(tmp_path)))


def test_weights_and_momentum_come_back_bit_for_bit(store: Store, tmp_path: Path) -> None:
    net, optimizer = trained(1)
    (tmp_path / "x").mkdir()
    checkpoint.save(tmp_path / "x", net, optimizer, {"step": 1, "metrics": {}})
    checkpoint.upload(tmp_path / "x", store, "step-000001")
    other, its_optimizer = trained(2)
    checkpoint.restore(checkpoint.load(store, "step-000001"), other, its_optimizer)
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["momentum_buffer"], its_optimizer.state[theirs]["momentum_buffer"])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "empty manifest", "missing file"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    store: Store, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(store, tmp_path, 10)
    saved(store, tmp_path, 20)
    model = Path(store.root, "step-000020", checkpoint.MODEL)
    data = bytearray(model.read_bytes())
    if damage == "truncated":
        model.write_bytes(data[:-5])
    elif damage == "flipped":
        data[-1] ^= 1
        model.write_bytes(data)
    elif damage == "missing file":
        model.unlink()
    else:
        manifest = Path(store.root, "step-000020", checkpoint.MANIFEST)
        manifest.write_text("") if damage == "empty manifest" else manifest.unlink()
    with caplog.at_level(logging.WARNING):
        found = checkpoint.latest(store)
    assert found is not None
    assert found.step == 10
    assert damage == "no manifest" or "checkpoint passed over: " in caplog.text
    assert damage == "no manifest" or "step-000020/" in caplog.text


def test_nothing_saved_is_no_checkpoint(store: Store) -> None:
    assert checkpoint.latest(store) is None
    assert checkpoint.best(store) is None


def test_the_best_is_the_highest_miou(store: Store, tmp_path: Path) -> None:
    for step, miou in ((10, 0.4), (20, 0.6), (30, 0.5)):
        saved(store, tmp_path, step, miou)
    assert checkpoint.best(store) == "step-000020"


def test_a_checkpoint_without_its_record_does_not_block_the_best(store: Store, tmp_path: Path) -> None:
    saved(store, tmp_path, 10)
    saved(store, tmp_path, 20, miou=0.9)
    Path(store.root, "step-000020", checkpoint.PROGRESS).unlink()
    assert checkpoint.best(store) == "step-000010"
    newest = checkpoint.newest_progress(store)
    assert newest is not None
    assert newest["step"] == 10


def test_a_store_that_keeps_less_than_it_was_given_is_an_error(store: Store, tmp_path: Path) -> None:
    class Forgetful(Store):
        """As a store that answers 411 to an upload and whose client hides it (seen: pyarrow with two S3 servers)."""

        def write(self, key: str, data: bytes) -> None:
            super().write(key, data[: len(data) // 2])

    with pytest.raises(checkpoint.CheckpointError, match=r"step-000010/.*bytes were written but the store holds"):
        saved(Forgetful(store.root), tmp_path, 10)


def test_the_manifest_lists_every_other_file(store: Store, tmp_path: Path) -> None:
    saved(store, tmp_path, 10)
    manifest = json.loads(store.read("step-000010/manifest.json"))
    assert sorted(manifest) == ["model.safetensors", "optimizer.safetensors", "progress.json"]
