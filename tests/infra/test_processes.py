"""Stopping ends everything that was started, and nothing else."""

import os
import socket
import sys
import time
from pathlib import Path

from infra import processes
from infra.processes import Identity

SPAWNS_A_CHILD_IN_ITS_OWN_SESSION = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
"""


def started(tmp_path: Path, mark: str, then: str) -> Identity:
    command = [sys.executable, "-c", SPAWNS_A_CHILD_IN_ITS_OWN_SESSION, then]
    leader = processes.start(command, environment=os.environ | {processes.MARK: mark}, log=tmp_path / "log", cwd=tmp_path)
    while "ready" not in (tmp_path / "log").read_text():
        time.sleep(0.02)
    return leader


def test_stop_ends_a_child_that_left_the_session(tmp_path: Path) -> None:
    leader = started(tmp_path, "mark-a", "stay")
    members = processes.members(leader, "mark-a")
    assert len(members) == 2
    processes.stop(leader, "mark-a", grace_seconds=0.5)
    assert not any(processes.alive(member) for member in members)


def test_stop_ends_what_a_dead_leader_left(tmp_path: Path) -> None:
    leader = started(tmp_path, "mark-b", "go")
    while processes.alive(leader):
        time.sleep(0.02)
    (orphan,) = processes.members(leader, "mark-b")
    processes.stop(leader, "mark-b", grace_seconds=0.5)
    assert not processes.alive(orphan)


def test_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    leader = started(tmp_path, "mark-c", "stay")
    earlier = Identity(leader.pid, leader.started - 1)
    assert not processes.alive(earlier)
    processes.stop(earlier, "another mark", grace_seconds=0.5)
    assert processes.alive(leader)
    processes.stop(leader, "mark-c", grace_seconds=0.5)


def test_a_taken_port_gives_way_to_a_free_one() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert processes.free_port(port) != port
    assert processes.free_port(port) == port
    assert processes.free_port(port, taken=[port]) != port
