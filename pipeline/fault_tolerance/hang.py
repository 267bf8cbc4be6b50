"""Kills a worker that makes no progress, after logging the stack of every thread."""

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from ccnet import distributed

logger = logging.getLogger(__name__)

LINGER_S = 10.0
"""Seconds between reporting the stacks and ending the process. The other workers hang too and need this time to report theirs:
the first worker that ends makes Ray Train end them all."""
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: a temporary failure."""


class HangDetector:
    """Reports the stacks of this process and ends it after `seconds` without progress; Ray Train then restarts all workers.

    Counts from the first `progress` on, because compiling the first step takes long. Only time in which this process runs counts:
    neither a clock that jumps nor a machine or process that was suspended is a hang. A hang in code that never releases the
    interpreter's lock is not detected here; Ray's health check of the worker fails instead.
    """

    def __init__(self, seconds: float, on_hang: Callable[[str], None]) -> None:
        self.seconds, self.on_hang = seconds, on_hang
        # No lock is needed: only the watched thread writes these two, and the detector's thread keeps its own counts.
        self.marks, self.pauses = 0, 0
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="HangDetector", daemon=True)

    def __enter__(self) -> Self:
        self.watched = threading.get_ident()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closed.set()
        self.thread.join()

    def progress(self) -> None:
        """Call it after each step and each validated image."""
        self.marks += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this block does not count; afterwards the count starts from zero."""
        self.pauses += 1
        try:
            yield
        finally:
            if self.marks:  # otherwise the count has not started yet
                self.marks += 1
            self.pauses -= 1

    def _watch(self) -> None:
        tick = min(1.0, self.seconds / 20)
        seen, waited, last = 0, 0.0, time.monotonic()
        while not self.closed.wait(tick):
            now = time.monotonic()
            passed, last = min(now - last, 2 * tick), now  # a longer gap: this process was suspended
            if self.marks != seen or self.pauses:
                seen, waited = self.marks, 0.0
            elif seen:
                waited += passed
            if waited >= self.seconds:
                self._end(waited)
                return

    def _end(self, waited: float) -> None:
        text = self._stacks(waited)

        def report() -> None:
            try:
                self.on_hang(text)
            except Exception:  # the process must end anyway
                logger.exception("the stacks could not be reported")

        # In a separate thread, because the report may hang as well.
        threading.Thread(target=report, daemon=True).start()
        time.sleep(LINGER_S)
        os._exit(EXIT_CODE)

    def _stacks(self, waited: float) -> str:
        """Which worker hangs and for how long, then the stack of the watched thread, then those of all others."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
        lines = [
            f"no progress for {waited:.0f} s: worker {distributed.rank()} of {distributed.world_size()}, "
            f"host {socket.gethostname()}, pid {os.getpid()}\n"
        ]
        for ident in sorted(frames, key=lambda ident: ident != self.watched):
            role = "the training thread" if ident == self.watched else "thread"
            lines += [f"{role} {names.get(ident, ident)}:\n", *traceback.format_stack(frames[ident])]
        return "".join(lines)
