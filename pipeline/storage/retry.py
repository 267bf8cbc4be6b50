"""Retries with growing random pauses within a budget of seconds.

Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): clients that
failed together do not retry together.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

FIRST_PAUSE_S = 0.1
"""Limit of the first pause in seconds; the limit doubles with each further pause."""
LONGEST_PAUSE_S = 5.0
"""Limit of every pause in seconds."""


R = TypeVar("R")


class Failed(Exception):
    """Job number `job` failed; `__cause__` is the fault. `final`: it is not transient; otherwise the budget was spent."""

    def __init__(self, job: int, tries: int, seconds: float, *, final: bool) -> None:
        super().__init__(f"tried {tries} times in {seconds:.1f} s" if tries > 1 else "tried once")
        self.job = job
        self.tries = tries
        self.seconds = seconds
        self.final = final


def draw_pause_s(tries: int, draw: Callable[[float, float], float]) -> float:
    """Seconds to wait after try number `tries`: draw(0, min(5, 0.1 * 2 ** (tries - 1)))."""
    doublings = min(tries - 1, 10)  # ten exceed the longest pause; 2.0 ** 1024 would be an OverflowError
    return draw(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**doublings))


def outcome(call: Callable[[], R]) -> R | Exception:
    """The result of a call, or the exception that it raises."""
    try:
        return call()
    except Exception as error:
        return error


def retried(
    num_jobs: int,
    attempt: Callable[[list[int]], Sequence[R | Exception]],
    *,
    patience_s: float,
    is_transient: Callable[[Exception], bool],
    on_fault: Callable[[int, Exception, int, float], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    draw: Callable[[float, float], float] | None = None,
) -> list[R]:
    """The results of jobs 0 .. num_jobs - 1; jobs that fail are tried again until `patience_s` seconds have passed.

    `attempt(jobs)` returns a result or an exception for each job. `on_fault(job, fault, next_try, pause_s)` is called for each
    fault that will be retried. The last try begins at the latest when the budget ends, so the call takes at most `patience_s`
    and one attempt. Raises Failed, caused by the fault: at once if it is not transient, otherwise when the budget is spent.
    """
    # The operating system's generator: workers with equal seeds of `random` would draw equal pauses and retry together.
    draw = draw or random.SystemRandom().uniform
    results: dict[int, R] = {}
    left = list(range(num_jobs))
    start, tries = clock(), 0
    while left:
        tries += 1
        faults: dict[int, Exception] = {}
        for job, found in zip(left, attempt(left), strict=True):
            if isinstance(found, Exception):
                faults[job] = found
            else:
                results[job] = found
        spent = clock() - start
        for job, fault in faults.items():
            final = not is_transient(fault)
            if final or spent >= patience_s:
                raise Failed(job, tries, spent, final=final) from fault
        left = list(faults)
        if left:
            pause_s = min(draw_pause_s(tries, draw), patience_s - spent)
            for job, fault in faults.items():
                on_fault(job, fault, tries + 1, pause_s)
            sleep(pause_s)
    return [results[job] for job in range(num_jobs)]
