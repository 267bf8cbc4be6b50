"""Steps that were left out because loss or gradient was not finite: said, counted, and too many in a row refused."""

import json
import logging

from ccnet.step import StepResult
from pipeline.fault_tolerance.failures import NotFinite
from pipeline.training.run import Job

logger = logging.getLogger(__name__)


class LeftOut:
    """Asks each step's result whether it was applied, but only once the next step is on its way: the device never waits."""

    def __init__(self, limit: int, total: int) -> None:
        """`limit`: so many in a row are refused. `total`: left out before, in earlier attempts."""
        self.limit, self.total, self.in_a_row = limit, total, 0
        self._newest: tuple[int, float, StepResult] | None = None

    def add(self, step: int, learning_rate: float, result: StepResult) -> None:
        """Notes a step, and asks about the one before. Raises NotFinite."""
        self.ask()
        self._newest = step, learning_rate, result

    def ask(self) -> None:
        """Waits for the newest step; `total` is that of all steps then. Raises NotFinite when too many in a row were left out."""
        if self._newest is None:
            return
        (step, learning_rate, result), self._newest = self._newest, None
        if result.applied:
            self.in_a_row = 0
            return
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        losses = ", ".join(f"{name} {float(value):.4g}" for name, value in result.losses.items())
        what = f"step {step}: {losses}, gradient norm {float(result.gradient_norm):.4g}, learning rate {learning_rate:.4g}"
        if self.in_a_row < self.limit:
            logger.warning("left out, loss or gradient is not finite: %s (%d in a row)", what, self.in_a_row)
            return
        raise NotFinite(
            f"{self.in_a_row} steps in a row without a finite loss and gradient; the last one: {what}. What helps as a rule: a "
            "lower train.learning_rate, train.warmup_steps, train.clip_norm, or bf16 instead of fp16"
        )


MICRO_BATCH = "micro-batch.json"
"""In the run's folder once memory ran short: the images of one pass that later attempts start with."""


def noted_micro_batch(job: Job) -> int | None:
    """Images a pass that an earlier attempt noted when memory ran short."""
    if not job.checkpoints.exists(MICRO_BATCH):
        return None
    return int(json.loads(job.checkpoints.read(MICRO_BATCH))["micro_batch"])
