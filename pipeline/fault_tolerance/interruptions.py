"""Why a run stops before its last step: a node is preempted, a stop is requested, a budget is spent."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import ray
import ray.train
import ray.train.collective

from pipeline.config.config import Config
from pipeline.config.train import Stop

logger = logging.getLogger(__name__)

ANSWER_S = 2.0
"""Longest wait for an answer of the stop flag, in seconds."""
MARGIN = 3.0
"""Save only if at least MARGIN x the duration of the last save is left; a previous upload may still be running."""
STOP_S, LONGEST_STOP_S = 50.0, 600.0
"""Seconds that a run waits for its checkpoint after a stop was requested: the first, since a submitted job is killed after 60 s,
or MARGIN x the duration of the last save if that is longer, but not more than the second."""


class Interruption(NamedTuple):
    """Why and how the workers stop; all of them agree on it between two steps."""

    reason: str
    moves: bool
    """Ray restarts the workers on other nodes; otherwise the run ends here and resumes when it is submitted again."""
    save: bool = True
    """There is time for a checkpoint."""
    validate: bool = False
    """There is time to validate it too."""


@ray.remote(num_cpus=0)
class StopFlag:
    """An actor that the driver sets when a stop is requested; it lives on the driver's node and ends with the driver."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.training = False
        self.attempted: set[float] = set()

    def request(self, reason: str) -> None:
        """Makes the workers stop at their next check."""
        self.reason = reason

    def requested(self) -> str | None:
        """The reason; None if no stop was requested."""
        return self.reason

    def set_training(self, training: bool) -> None:
        """Notes whether the workers train, so that they look for a request between their steps."""
        self.training = training

    def is_training(self) -> bool:
        """Whether the workers train. If not, they start, load or wait, and there is nothing to save."""
        return self.training

    def attempt(self, began: float) -> bool:
        """Notes an attempt of the training that began at that time; returns whether an earlier attempt did."""
        again = began in self.attempted
        self.attempted.add(began)
        return again


def stop_requested(flag: Any) -> str | None:
    """Why the run should stop. None if no stop was requested, if the run has no stop flag, or if the flag does not answer."""
    reason: str | None = _answer(flag, "requested")
    return reason


def interrupted(flag: Any, began: float) -> bool:
    """Whether an attempt of the training that began at that time (Unix seconds) came before this one; each asks once.

    False if the run has no stop flag, or if the flag does not answer.
    """
    return bool(_answer(flag, "attempt", began))


def _answer(flag: Any, question: str, *words: Any) -> Any:
    if flag is None:
        return None
    try:
        return ray.get(getattr(flag, question).remote(*words), timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        logger.warning("the stop flag does not answer: %s", str(error).splitlines()[0])
        return None


def announce(flag: Any, *, training: bool) -> None:
    """Notes in the stop flag, if the run has one, whether the workers train; called on rank 0 only."""
    if flag is not None:
        flag.set_training.remote(training)


@contextmanager
def first_signal(act: Callable[[int], None]) -> Iterator[list[int]]:
    """Calls `act` with the first SIGTERM or Ctrl-C in this block; the second one does what it did before the block.

    Gives the list of the signals received, which is empty at first. A signal that this process ignores stays ignored.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()
        act(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield received
    finally:
        restore()


def longest_wait_s(stored_s: float) -> float:
    """Seconds that a run waits for its checkpoint after a stop was requested; `stored_s`: what storing the last one took."""
    return min(max(STOP_S, MARGIN * stored_s), LONGEST_STOP_S)


class TimeSpent(NamedTuple):
    """Time for which a run held its training workers, summed over all attempts."""

    hours: float = 0.0
    worker_hours: float = 0.0

    def plus(self, seconds: float, workers: int) -> "TimeSpent":
        hours = seconds / 3600
        return TimeSpent(self.hours + hours, self.worker_hours + workers * hours)

    def exhausted(self, stop: Stop) -> str | None:
        """The budget that is spent, with the setting that raises it; None if none is spent."""
        if stop.hours is not None and self.hours >= stop.hours:
            return f"stop.hours = {stop.hours:g} are spent: a larger value resumes the run"
        if stop.cost is not None and stop.cost_per_worker_hour is not None:
            cost = self.worker_hours * stop.cost_per_worker_hour
            if cost >= stop.cost:
                return (
                    f"stop.cost = {stop.cost:g} is spent ({self.worker_hours:.2f} worker hours): a larger value resumes the run"
                )
        return None


def preempted(nodes: Iterable[str], left_s: float, stored_s: float) -> Interruption:
    """What to do about nodes that are taken away in `left_s` seconds, if storing a checkpoint takes `stored_s` seconds."""
    fits = left_s > MARGIN * stored_s
    time_left = "" if math.isinf(left_s) else f" in {left_s:.0f} s"
    too_late = "" if fits else f", too soon for a checkpoint, which takes {stored_s:.0f} s"
    named = ", ".join(node[:8] for node in nodes)
    return Interruption(f"node {named} is about to be taken away{time_left}{too_late}", moves=True, save=fits)


class InterruptionMonitor:
    """Checks for interruptions every `faults.look_every` steps; every worker must call `check` at the same steps."""

    def __init__(self, config: Config, flag: Any, spent: TimeSpent, workers: int) -> None:
        self.config, self.flag, self.workers = config, flag, workers
        self.before, self.started = spent, time.monotonic()

    @property
    def spent(self) -> TimeSpent:
        """Time of all attempts, including this one up to now."""
        return self.before.plus(time.monotonic() - self.started, self.workers)

    def check(self, step: int, stored_s: float) -> Interruption | None:
        """What interrupts the run after `step` steps, the same on every worker; None if nothing does, or if no check is due.

        `stored_s`: seconds that storing the last checkpoint took; the value of rank 0 decides.
        """
        if step % self.config.faults.look_every:
            return None
        if info := ray.train.get_preemption_info():
            left_s = math.inf if info.deadline_ms is None else info.deadline_ms / 1000 - time.time()
            # Rank 0 decides for all, because clocks and measured times differ.
            moved: Interruption = ray.train.collective.broadcast_from_rank_zero(
                preempted(info.preempted_node_ids, left_s, stored_s)
            )
            return moved
        found_here = self._budget_or_request() if ray.train.get_context().get_world_rank() == 0 else None
        found: Interruption | None = ray.train.collective.broadcast_from_rank_zero(found_here)
        return found

    def _budget_or_request(self) -> Interruption | None:
        """A spent budget or a requested stop; called on rank 0 only."""
        if exhausted := self.spent.exhausted(self.config.stop):
            return Interruption(exhausted, moves=False, validate=True)
        reason = stop_requested(self.flag)
        return None if reason is None else Interruption(reason, moves=False)
