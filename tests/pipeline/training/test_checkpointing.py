"""Local checkpoint folders that killed workers left behind."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.training.checkpointing import remove_leftovers


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
