"""Starts background processes and later ends them with all processes that they started.

A process is identified by its id and its start time, because the system reuses ids: no other process is ever ended.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import psutil

MARK = "CCNET_STACK_MARK"
"""Environment variable that every process of a stack inherits; it identifies those whose parent has ended."""


class Identity(NamedTuple):
    """A process; the start time distinguishes it from a later process with the same id."""

    pid: int
    started: float
    """Seconds after boot."""


class Entry(NamedTuple):
    started: float
    parent: int
    group: int
    session: int


def start(command: list[str], *, environment: dict[str, str], log: Path, cwd: Path) -> Identity:
    """Starts `command` in its own session and appends its output to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    process.returncode = 0  # otherwise Popen warns that the process still runs, which is intended
    return Identity(process.pid, _started(psutil.Process(process.pid)))  # it exists until this process waits for it


def alive(identity: Identity) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    with contextlib.suppress(ChildProcessError):  # an ended child of this process is a zombie until it is waited for
        os.waitpid(identity.pid, os.WNOHANG)
    try:
        entry = _entry(psutil.Process(identity.pid))
    except psutil.NoSuchProcess:
        return False
    return entry is not None and entry.started == identity.started


def members(leader: Identity, mark: str) -> set[Identity]:
    """The leader, its descendants, every process in their sessions and groups, and every process that carries the mark.

    Ray puts a job's entrypoint into a separate group, and MLflow's workers outlive their server, so neither the group nor the
    parent alone finds them all.
    """
    running = list(psutil.process_iter())
    table = {process.pid: entry for process in running if (entry := _entry(process)) is not None}
    found = {process.pid for process in running if process.pid in table and _marked(process, mark)}
    if leader.pid in table and table[leader.pid].started == leader.started:
        found.add(leader.pid)
    grown = True
    while grown:
        heads = found & {e.session for e in table.values()} | found & {e.group for e in table.values()}
        more = {p for p, e in table.items() if p not in found and (e.parent in found or e.session in heads or e.group in heads)}
        found |= more
        grown = bool(more)
    return {Identity(pid, table[pid].started) for pid in found - {os.getpid()}}


def stop(leader: Identity, mark: str, *, grace_seconds: float = 10.0) -> None:
    """Sends SIGTERM to the leader and, after the grace, SIGKILL to its remaining members. Raises RuntimeError if any survives."""
    known = members(leader, mark)
    if alive(leader):
        os.kill(leader.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while _living(known) and time.monotonic() < deadline:
        if not alive(leader):  # an ended leader does not stop its children any more
            deadline = min(deadline, time.monotonic() + 2)
        time.sleep(0.1)
        known |= members(leader, mark)
    for _ in range(50):
        known |= members(leader, mark)
        left = _living(known)
        if not left:
            return
        for identity in left:
            try:
                os.kill(identity.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    raise RuntimeError(f"these processes do not end: {sorted(i.pid for i in _living(known))}")


def free_port(preferred: int, taken: Collection[int] = ()) -> int:
    """`preferred` if it is free on loopback, else another free port; never one of `taken`."""
    for port in (preferred, *[0] * 20):
        with socket.socket() as probe:
            # Servers set it too; with it, a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
        if found not in taken:
            return found
    raise RuntimeError("no free port on 127.0.0.1")


def _living(identities: set[Identity]) -> set[Identity]:
    return {identity for identity in identities if alive(identity)}


def _started(process: psutil.Process) -> float:
    # Both times are wall clock and read together, so setting the clock between two calls does not change the difference.
    return round(process.create_time() - psutil.boot_time(), 2)


def _entry(process: psutil.Process) -> Entry | None:
    """Parent, group and session of a process; None if it has ended."""
    try:
        with process.oneshot():
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return None
            return Entry(_started(process), process.ppid(), os.getpgid(process.pid), os.getsid(process.pid))
    except (psutil.Error, ProcessLookupError, PermissionError):
        return None


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):  # it has ended, or is another user's
        return False
