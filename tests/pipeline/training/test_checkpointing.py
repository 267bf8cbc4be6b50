"""Local checkpoint folders that killed workers left behind."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CheckpointError
from pipeline.training.checkpointing import RunRecord, remove_leftovers


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
