"""The content of a checkpoint, how it is restored, and which one of a run is the best."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints import checkpoint
from pipeline.errors import CheckpointError
from pipeline.storage.store import Store
from tests.support.checkpoints import average_of, equal, latest, saved, step, trained

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_training_resumes_from_a_checkpoint_as_if_it_had_not_stopped(store: Store, tmp_path: Path) -> None:
    net, optimizer = trained(1)
    local = tmp_path / "local"
    local.mkdir()
    checkpoint.save(local, checkpoint.snapshot(net, optimizer), {"step": 1, "metrics": {}})
    checkpoint.upload(local, store, "step-000001")
    other, its_optimizer = trained(2)
    checkpoint.restore(checkpoint.load(store, "step-000001"), other, its_optimizer)
    for seed in (3, 4):
        step(net, optimizer, seed)
        step(other, its_optimizer, seed)
    assert equal(other.state_dict(), net.state_dict())
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        buffer = its_optimizer.state[theirs]["momentum_buffer"]
        assert torch.equal(optimizer.state[mine]["momentum_buffer"], buffer)
        assert buffer.stride() == theirs.stride()


def test_a_restored_optimizer_forgets_what_it_had(store: Store, tmp_path: Path) -> None:
    net, _ = trained(1)
    local = tmp_path / "local"
    local.mkdir()
    fresh = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    checkpoint.save(local, checkpoint.snapshot(net, fresh), {"step": 0, "metrics": {}})
    checkpoint.upload(local, store, "step-000000")
    other, its_optimizer = trained(2)
    checkpoint.restore(checkpoint.load(store, "step-000000"), other, its_optimizer)
    assert not its_optimizer.state


def test_a_snapshot_does_not_change_while_training_continues() -> None:
    net, optimizer = trained(1)
    average = average_of(net)
    state = checkpoint.snapshot(net, optimizer, average)
    before = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in state]
    step(net, optimizer, 2)
    average.load_state_dict(net.state_dict())
    assert all(map(equal, state, before))
    assert not equal(state.model, net.state_dict())
    assert state.model.keys() == net.state_dict().keys()
    assert state.optimizer.keys() == {name for name, _ in net.named_parameters()}


def test_the_average_is_what_is_scored_and_predicts(store: Store, tmp_path: Path) -> None:
    net = saved(store, tmp_path, 10, averaged=True)
    average = average_of(net).state_dict()
    found = checkpoint.load(store, "step-000010")
    assert equal(found.weights, average)
    other, optimizer = trained(2)
    checkpoint.restore(found, other)
    assert equal(other.state_dict(), average)
    its_average = average_of(other)
    checkpoint.restore(found, other, optimizer, its_average)
    assert equal(other.state_dict(), net.state_dict())
    assert equal(its_average.state_dict(), average)


def test_without_an_average_the_model_predicts_and_none_can_be_restored(store: Store, tmp_path: Path) -> None:
    net = saved(store, tmp_path, 10)
    found = checkpoint.load(store, "step-000010")
    assert found.average == {}
    assert equal(found.weights, net.state_dict())
    other, optimizer = trained(2)
    before = checkpoint.snapshot(other, optimizer)
    with pytest.raises(CheckpointError, match=r"step-000010: has no average .*: leave out train.ema_decay"):
        checkpoint.restore(found, other, optimizer, average_of(other))
    assert all(map(equal, checkpoint.snapshot(other, optimizer), before))


@pytest.mark.parametrize("averaged", [False, True])
def test_predictions_need_only_the_weights_that_predict(store: Store, tmp_path: Path, averaged: bool) -> None:
    net = saved(store, tmp_path, 10, averaged=averaged)
    for file in [checkpoint.OPTIMIZER] + [checkpoint.MODEL] * averaged:
        Path(store.root, "step-000010", file).unlink()
    found = checkpoint.load(store, "step-000010", with_optimizer=False)
    assert equal(found.weights, (average_of(net) if averaged else net).state_dict())
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.load(store, "step-000010")


@pytest.mark.parametrize("averaged", [False, True])
def test_the_manifest_lists_every_other_file(store: Store, tmp_path: Path, averaged: bool) -> None:
    saved(store, tmp_path, 10, averaged=averaged)
    manifest = json.loads(store.read("step-000010/manifest.json"))
    average = ["average.safetensors"] * averaged
    assert sorted(manifest) == [*average, "model.safetensors", "optimizer.safetensors", "progress.json"]
    sizes = {found.key.partition("/")[2]: found.size for found in store.listing()}
    assert sizes == {file: entry["bytes"] for file, entry in manifest.items()} | {"manifest.json": sizes["manifest.json"]}


@pytest.mark.slow
def test_saving_takes_no_second_copy_of_the_tensors(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import torch
from pipeline.checkpoints import checkpoint
from pipeline.benchmark.processes import own_peak
folder = Path(sys.argv[1])
small, large = ({"weight": torch.ones(mib, 1 << 18)} for mib in (1, 192))
checkpoint.save(folder, checkpoint.State(small, small, small), {"step": 1})
Path("/proc/self/clear_refs").write_text("5")
before = own_peak()
checkpoint.save(folder, checkpoint.State(large, {}, {}), {"step": 1})
print(own_peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert (tmp_path / checkpoint.MODEL).stat().st_size > 192 * MIB
    assert int(done.stdout) < 48 * MIB


def test_nothing_saved_is_no_checkpoint(store: Store) -> None:
    assert latest(store) is None
    assert checkpoint.best(store) is None
    assert checkpoint.load_best(store) is None
    assert checkpoint.newest_progress(store) is None


def test_the_best_is_the_highest_miou_and_the_later_of_equals(store: Store, tmp_path: Path) -> None:
    for number, miou in ((10, 0.4), (20, 0.6), (30, 0.6), (40, 0.5)):
        saved(store, tmp_path, number, miou)
    assert checkpoint.best(store) == "step-000030"
    found = checkpoint.load_best(store)
    assert found is not None
    assert found.step == 30
    assert found.optimizer == {}


def test_a_checkpoint_without_a_score_is_the_newest_but_never_the_best(store: Store, tmp_path: Path) -> None:
    saved(store, tmp_path, 10, miou=None)
    assert checkpoint.best(store) is None
    saved(store, tmp_path, 20, miou=0.0)
    saved(store, tmp_path, 30, miou=float("nan"))
    saved(store, tmp_path, 40, miou=None)
    assert checkpoint.best(store) == "step-000020"
    newest = checkpoint.newest_progress(store)
    assert newest is not None
    assert newest["step"] == 40


def test_other_files_of_a_run_are_no_checkpoints(store: Store, tmp_path: Path) -> None:
    saved(store, tmp_path, 10)
    for key in ("step-x/manifest.json", "step-99/manifest.json", "old/step-000099/manifest.json", "step-000099", "snapshot.json"):
        store.write(key, b"{}")
    found = latest(store)
    assert found is not None
    assert found.step == 10
