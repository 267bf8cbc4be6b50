"""Measures the peak memory of a group of processes; pages that they share count once."""

import multiprocessing
import resource
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil


class PeakMemory:
    """The highest sum of PSS (Linux, Documentation/filesystems/proc.rst) of the processes while the context is open."""

    def __init__(self, pids: Callable[[], Iterable[int]], every_s: float = 0.5) -> None:
        self.pids, self.every_s = pids, every_s
        self.bytes = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._closed.wait(self.every_s):
            self._sample()

    def _sample(self) -> None:
        self.bytes = max(self.bytes, sum(map(pss, self.pids())))


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes, or its resident size if the system has no PSS; 0 if the process has ended."""
    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(memory, "pss", memory.rss))


def own_peak() -> int:
    """Highest resident size of this process so far, in bytes.

    On Linux not from ru_maxrss: a process inherits it from the larger process that started it. On macOS there is no other source.
    """
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
