"""Why a run leaves off before its last step: a node is taken away, the job is told to stop, a budget is spent."""

import logging
import math
import time
from typing import Any, NamedTuple

import ray
import ray.train
import ray.train.collective

from pipeline.config.config import Config
from pipeline.config.train import Stop

logger = logging.getLogger(__name__)

ANSWER_S = 2.0
MARGIN = 3.0
"""A checkpoint is begun when so many times the seconds are left that the last one took: another may be on its way still."""


class Interruption(NamedTuple):
    """What all workers agree on between two steps."""

    reason: str
    moves: bool
    """Ray starts the workers anew on other nodes; otherwise the run ends here and is resumed when it is submitted again."""
    save: bool = True
    """There is time for a checkpoint."""
    validate: bool = False
    """And for its validation: a clean end."""


@ray.remote(num_cpus=0)
class StopFlag:
    """Raised by the driver when the job is told to stop; it lives on the driver's node and as long as the driver."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        """Asks the workers to leave off at their next look."""
        self.reason = reason

    def requested(self) -> str | None:
        """The reason, None while nothing was asked."""
        return self.reason


def stop_requested(flag: Any) -> str | None:
    """Why a run is asked to leave off; None when it is not, or there is nobody to ask."""
    if flag is None:
        return None
    try:
        reason: str | None = ray.get(flag.requested.remote(), timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        logger.warning("whether the job is told to stop cannot be seen: %s", str(error).splitlines()[0])
        return None
    return reason


class TimeSpent(NamedTuple):
    """Time that the training workers of a run were held, all attempts together."""

    hours: float = 0.0
    worker_hours: float = 0.0

    def plus(self, seconds: float, workers: int) -> "TimeSpent":
        hours = seconds / 3600
        return TimeSpent(self.hours + hours, self.worker_hours + workers * hours)

    def exhausted(self, stop: Stop) -> str | None:
        """Which budget is spent, with the setting that raises it; None when none is."""
        if stop.hours is not None and self.hours >= stop.hours:
            return f"stop.hours = {stop.hours:g} are spent: a larger value goes on from here"
        if stop.cost is not None and stop.cost_per_worker_hour is not None:
            cost = self.worker_hours * stop.cost_per_worker_hour
            if cost >= stop.cost:
                return (
                    f"stop.cost = {stop.cost:g} is spent ({self.worker_hours:.2f} worker hours): a larger value goes on from here"
                )
        return None


class InterruptionMonitor:
    """Looks for interruptions every `faults.look_every` steps; every worker must call `check` at the same steps."""

    def __init__(self, config: Config, flag: Any, spent: TimeSpent, workers: int) -> None:
        self.config, self.flag, self.workers = config, flag, workers
        self.before, self.started = spent, time.monotonic()

    @property
    def spent(self) -> TimeSpent:
        """All attempts, this one up to now."""
        return self.before.plus(time.monotonic() - self.started, self.workers)

    def check(self, step: int, stored_s: float) -> Interruption | None:
        """What interrupts the run after `step` steps, the same on every worker; None for nothing, or when no look is due.

        `stored_s`: seconds that storing a checkpoint takes, as rank 0 has measured.
        """
        if step % self.config.faults.look_every:
            return None
        if info := ray.train.get_preemption_info():
            nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
            left_s = math.inf if info.deadline_ms is None else info.deadline_ms / 1000 - time.time()
            # Rank 0 decides, for clocks and measurements differ.
            fits: bool = ray.train.collective.broadcast_from_rank_zero(left_s > MARGIN * stored_s)
            time_left = "" if math.isinf(left_s) else f" in {left_s:.0f} s"
            too_late = "" if fits else f", too soon for a checkpoint, which takes {stored_s:.0f} s"
            return Interruption(f"node {nodes} is about to be taken away{time_left}{too_late}", moves=True, save=fits)
        own = self._own() if ray.train.get_context().get_world_rank() == 0 else None
        found: Interruption | None = ray.train.collective.broadcast_from_rank_zero(own)
        return found

    def _own(self) -> Interruption | None:
        """What rank 0 knows alone."""
        if over := self.spent.exhausted(self.config.stop):
            return Interruption(over, moves=False, validate=True)
        reason = stop_requested(self.flag)
        return None if reason is None else Interruption(reason, moves=False)
