"""Ends a worker that makes no progress, and tells before where each of its threads stands: a hang leaves no other trace."""

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
"""From the stacks to the end of the process: the peers hang alike, and the first worker to go takes all others with it."""
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: to be tried again."""


class HangDetector:
    """Writes the stacks of this process and ends it when `seconds` pass without progress; Ray Train then starts all workers anew.

    Counts from the first `progress` on, because compiling takes its time. Only time in which this process runs counts: neither
    a clock that jumps nor a machine or process that was stopped is a hang. Code that never gives up the interpreter's lock
    cannot be seen from here; Ray's health check of the worker fails then.
    """

    def __init__(self, seconds: float, on_hang: Callable[[str], None]) -> None:
        self.seconds, self.on_hang = seconds, on_hang
        # Each has one writer, the watched thread; what the watch counts is its own.
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
        """A step, or a validated image, is done."""
        self.marks += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing counts in here; afterwards it counts from zero."""
        self.pauses += 1
        try:
            yield
        finally:
            if self.marks:
                self.marks += 1
            self.pauses -= 1

    def _watch(self) -> None:
        tick = min(1.0, self.seconds / 20)
        seen, waited, last = 0, 0.0, time.monotonic()
        while not self.closed.wait(tick):
            now = time.monotonic()
            passed, last = min(now - last, 2 * tick), now  # more than that, and this process was stopped in between
            if self.marks != seen or self.pauses:
                seen, waited = self.marks, 0.0
            elif seen:
                waited += passed
            if waited >= self.seconds:
                self._end(waited)
                return

    def _end(self, waited: float) -> None:
        text = self._stacks(waited)

        def tell() -> None:
            try:
                self.on_hang(text)
            except Exception:  # the process ends all the same
                logger.exception("the stacks could not be told")

        # What it needs may hang as well.
        threading.Thread(target=tell, daemon=True).start()
        time.sleep(LINGER_S)
        os._exit(EXIT_CODE)

    def _stacks(self, waited: float) -> str:
        """Who hangs and for how long, then the stack of the watched thread, then those of all others."""
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
