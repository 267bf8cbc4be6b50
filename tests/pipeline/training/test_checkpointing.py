"""What a worker may store, and local checkpoint folders that killed workers left behind."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import pytest
import ray.train

from pipeline.checkpoints import checkpoint
from pipeline.errors import CheckpointError
from pipeline.fault_tolerance import interruptions
from pipeline.fault_tolerance.failures import Fault, Kind, NotStored, WorkerFault, classify
from pipeline.fault_tolerance.goodput import Goodput
from pipeline.fault_tolerance.interruptions import longest_wait_s
from pipeline.storage.lease import LEASE, Claim, Holder, held
from pipeline.storage.store import Store
from pipeline.training import checkpointing
from pipeline.training.checkpointing import CheckpointSaver, RunRecord, remove_leftovers
from pipeline.training.run import Run
from tests.support.checkpoints import trained
from tests.support.disks import small_disk
from tests.support.own_data import config

NAME = "step-000004"


def store_checkpoint(folder: Path, store: Store, local: Path, claim: Claim) -> Fault | None:
    """Stores a checkpoint as rank 0 does; returns the fault that the controller would receive."""
    local.mkdir(exist_ok=True)
    run = Run(config(folder), cast(Any, None), store, "", "", claim)
    saver = CheckpointSaver(run, cast(Any, None), None, lambda: None)
    try:
        saver._store(checkpoint.snapshot(*trained(4)), {"step": 4}, ray.train.Checkpoint(str(local)), NAME)
    except WorkerFault as error:
        return error.fault
    return None


def test_a_checkpoint_of_a_driver_that_was_replaced_is_not_stored(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    with held(store) as claim:
        assert store_checkpoint(tmp_path, store, tmp_path / "first", claim) is None
        before = store.listing(NAME)
        theirs = Holder.this_process()._replace(id="b", host="gpu-2", pid=4711)
        store.write(LEASE, json.dumps(theirs._asdict()).encode())
        fault = store_checkpoint(tmp_path, store, tmp_path / "second", claim)
    assert fault
    assert fault.kind == Kind.DETERMINISTIC
    assert "run: taken over by process 4711 on host gpu-2 since " in fault.what
    assert store.listing(NAME) == before


def test_a_checkpoint_that_does_not_fit_into_the_temporary_folder_is_a_fault_of_the_infrastructure(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    with held(store) as claim, small_disk(tmp_path / "full") as full:
        (full / "others").write_bytes(bytes(2**20 - 4096))
        fault = store_checkpoint(tmp_path, store, full / "local", claim)
    assert fault
    assert (fault.kind, fault.raised) == (Kind.INFRASTRUCTURE, True)
    assert re.search(rf"DiskError: {full}: the disk is full \([\d.]+ (bytes|KiB) needed, \S+ (bytes|KiB) free\)", fault.what)
    assert not store.list(NAME)


def storing(folder: Path, answers: Iterator[str | None], monkeypatch: pytest.MonkeyPatch) -> CheckpointSaver:
    """A saver whose checkpoint of step 40 is being stored; `answers`: those of the stop flag."""
    monkeypatch.setattr(checkpointing, "LOOK_S", 0.05)
    monkeypatch.setattr(interruptions, "STOP_S", 0.2)
    run = Run(config(folder), cast(Any, None), Store(str(folder / "run")), "", "", cast(Any, None))
    saver = CheckpointSaver(run, cast(Any, None), None, lambda: next(answers))
    saver.idle.clear()
    saver.storing = 40
    return saver


def test_a_run_that_is_to_stop_waits_for_a_slow_store_for_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = storing(tmp_path, iter([None, None, "stopped on request"]), monkeypatch)
    words = (
        rf"^stopped on request; the checkpoint of step 40 and what was trained after it are not stored, because {tmp_path}/run/ "
        r"did not take them within \d s$"
    )
    with pytest.raises(NotStored, match=words) as caught:
        saver.wait()
    assert classify(caught.value).kind == Kind.STOPPED


def test_a_run_that_is_not_to_stop_waits_until_its_checkpoint_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = storing(tmp_path, repeat(None), monkeypatch)
    stored = threading.Timer(0.5, saver.idle.set)
    stored.start()
    saver.wait()
    stored.join()
    saver.stop_requested = lambda: "stopped on request"
    saver.wait()  # nothing is being stored


@pytest.mark.parametrize(("stored_s", "limit_s"), [(0.0, 50.0), (10.0, 50.0), (60.0, 180.0), (3600.0, 600.0)])
def test_a_stop_gives_a_checkpoint_the_time_that_the_last_one_took(stored_s: float, limit_s: float) -> None:
    assert longest_wait_s(stored_s) == limit_s


def test_what_killed_workers_of_this_host_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    host, gone = socket.gethostname(), subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = f"ccnet-checkpoint-{host}-{gone.pid}-a"
    others = [f"ccnet-checkpoint-{host}-{os.getpid()}-a", f"ccnet-checkpoint-{host}-b-{gone.pid}-a", f"ccnet-{gone.pid}"]
    for name in (left, *others):
        (tmp_path / name).mkdir()
    remove_leftovers()
    assert sorted(os.listdir(tmp_path)) == sorted(others)


@pytest.mark.parametrize("progress", [{}, {"record": RunRecord().json() | {"phase": 2}}, {"record": {"best": 0.5}}])
def test_the_record_of_another_version_is_an_error_with_the_way_out(progress: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"step 40: its record is of another version .*name=\.\.\."):
        RunRecord.of(progress | {"step": 40})


def test_a_checkpoint_keeps_where_the_time_went_and_one_of_an_older_version_has_none() -> None:
    record = RunRecord(skipped=1, goodput=Goodput(stepping=60.0, lost=4.5, steps=30, worker_s=129.0, until=1.8e9))
    assert RunRecord.of({"step": 4, "record": json.loads(json.dumps(record.json()))}) == record
    older = {key: value for key, value in record.json().items() if key != "goodput"}
    assert RunRecord.of({"step": 4, "record": older}) == RunRecord(skipped=1)
