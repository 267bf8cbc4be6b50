"""The checks of cluster and disks."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.config.load import override
from pipeline.preflight import cluster_checks
from pipeline.preflight.resources import checkpoint_bytes
from tests.pipeline.preflight.test_checks import TWO_CPUS, config, manifest


class Usage(NamedTuple):
    free: int


def test_too_few_cpus_are_named_with_the_setting_that_fits() -> None:
    assert cluster_checks.cpus(config(), 2) == []
    (found,) = cluster_checks.cpus(config(train__cpus_per_worker=1.0), 2)
    assert found.level == "error"
    assert found.what == ("train.workers = 2: 3 CPUs are needed (workers x 1 + 2 data tasks x 0.5), but the cluster has 2")
    assert found.fix == "train.cpus_per_worker=0.5"
    (found,) = cluster_checks.cpus(config(), 0.5)
    assert found.fix == "fewer train.workers or a larger cluster"


def test_the_cpus_that_are_proposed_suffice() -> None:
    """Rounded down: 3 workers of 1.1666 CPUs on 4 CPUs, not of 1.2."""
    three = config(train__workers=3, train__global_batch=9, train__cpus_per_worker=2, data__cpus_per_task=0.25)
    assert cluster_checks.cpus(three, 4)[0].fix == "train.cpus_per_worker=1.16"
    assert cluster_checks.cpus(override(three, {"train.cpus_per_worker": 1.16}), 4) == []


def test_gpus_that_would_lie_idle_are_named_with_the_workers_that_use_them() -> None:
    four = config(train__workers=4)
    assert cluster_checks.gpus(four, 0) == []
    assert cluster_checks.gpus(four, 4) == []
    (found,) = cluster_checks.gpus(four, 3)
    assert found.what == "train.workers = 4: the cluster has 3 GPUs, fewer than workers: all run on CPUs"
    assert found.fix == "train.workers=2"  # 3 does not divide the batch of 8
    assert cluster_checks.gpus(config(train__workers=2), 2) == []


def test_a_feed_larger_than_half_the_object_store_is_doubted_with_blocks_that_fit() -> None:
    """Cityscapes on 2 CPUs: a worker's step is 4 crops of 769 x 769 x 4 bytes; 4 tasks and 2 workers hold 12 such steps."""
    large = config(data__crop_size=769, data__cpus_per_task=0.25)
    assert cluster_checks.object_store(large, TWO_CPUS) == []
    (found,) = cluster_checks.object_store(large, {"CPU": 2, "object_store_memory": 2e8})
    assert found.fix == "fewer images per worker, a smaller data.crop_size, or a larger object store"
    blocks = override(large, {"data.block_bytes": 64 * 2**20})
    (found,) = cluster_checks.object_store(blocks, TWO_CPUS)
    assert found.what == (
        "data.block_bytes = 67108864: blocks of 63.2 MiB on the way to the workers need 758 MiB, "
        "over 50 % of the cluster's object store (600 MiB)"
    )
    assert found.fix == "data.block_bytes=16777216"
    assert cluster_checks.object_store(override(blocks, {"data.block_bytes": 16777216}), TWO_CPUS) == []


def test_a_disk_without_room_for_the_checkpoints_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = config(storage__path=str(tmp_path / "not" / "there"))
    one = checkpoint_bytes(local, 3)
    for free, level in ((8 * one, None), (8 * one - 1, "warning"), (4 * one, "warning"), (4 * one - 1, "error")):
        monkeypatch.setattr(shutil, "disk_usage", {tmp_path: Usage(free)}.__getitem__)
        found = cluster_checks.disk(local, manifest())
        assert [finding.level for finding in found] == ([level] if level else [])
    assert found[0].fix == "train.keep_checkpoints=1, free some space, or another storage.path"
    assert cluster_checks.disk(config(), manifest()) == []  # a bucket


def test_checkpoints_that_a_run_has_written_need_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = config(storage__path=str(tmp_path))
    one = checkpoint_bytes(local, 3)
    file = Path(local.runs_url, local.run_key, "step-000040", "model.safetensors")
    file.parent.mkdir(parents=True)
    with file.open("wb") as sparse:
        sparse.truncate(3 * one)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * one))
    assert cluster_checks.disk(local, manifest()) == []


def test_a_temporary_folder_without_room_for_a_checkpoint_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one = checkpoint_bytes(config(), 3)
    for free, level in ((2 * one, None), (2 * one - 1, "warning"), (one, "warning"), (one - 1, "error")):
        monkeypatch.setattr(shutil, "disk_usage", {str(tmp_path): Usage(free)}.__getitem__)
        found = cluster_checks.temporary(config(), manifest())
        assert [finding.level for finding in found] == ([level] if level else [])
    assert found[0].what.startswith(f"temporary folder {tmp_path}: ")
    assert found[0].fix == "free some space, or set TMPDIR to another folder on every node"
