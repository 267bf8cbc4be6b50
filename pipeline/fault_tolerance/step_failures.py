"""Steps that fail: those skipped because loss or gradient is not finite, and those that run out of memory."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from ccnet import distributed
from ccnet.step import StepResult
from pipeline.config.config import Config
from pipeline.fault_tolerance.failures import NotFinite, OutOfMemory, is_out_of_memory
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


class SkippedSteps:
    """Reads each step's `applied` flag one step late, so that the host never waits for the device."""

    def __init__(self, limit: int, total: int) -> None:
        """`limit`: this many skipped steps in a row are an error. `total`: steps skipped in earlier attempts."""
        self.limit, self.total, self.in_a_row = limit, total, 0
        self._newest: tuple[int, float, StepResult] | None = None

    def record(self, step: int, learning_rate: float, result: StepResult) -> None:
        """Takes the result of a step, and checks the step before. Raises NotFinite."""
        self.check()
        self._newest = step, learning_rate, result

    def check(self) -> None:
        """Waits for the newest step, so that `total` covers all steps. Raises NotFinite if too many in a row were skipped."""
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
            logger.warning("skipped, loss or gradient is not finite: %s (%d in a row)", what, self.in_a_row)
            return
        raise NotFinite(
            f"{self.in_a_row} steps in a row without a finite loss and gradient; the last one: {what}. Usual fixes: a "
            "lower train.learning_rate, train.warmup_steps, train.clip_norm, or bf16 instead of fp16"
        )


MICRO_BATCH = "micro-batch.json"
"""File in the run's folder with the images per pass for later attempts; exists once a step ran out of memory."""


def noted_micro_batch(store: Store) -> int | None:
    """Images per pass that an earlier attempt noted when it ran out of memory; None if none did, or if the note is damaged."""
    try:
        number = json.loads(store.read(MICRO_BATCH))["micro_batch"]
        if type(number) is not int or number < 1:
            raise ValueError(f"micro_batch = {number!r}")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is damaged and not used (%s): passes are as large as configured until one does not fit",
                       store.url(MICRO_BATCH), error)  # fmt: skip
        return None
    return int(number)


@contextmanager
def smaller_passes(store: Store, config: Config, micro_batch: int | None, step: int) -> Iterator[None]:
    """Wraps a step. If memory runs out, notes half as many images per pass for the next attempt and raises OutOfMemory.

    `store`: the run's folder. `micro_batch`: images per pass; None for the worker's whole share of the global batch.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        share = math.ceil(config.train.global_batch / distributed.world_size())
        used = min(micro_batch or share, share)
        if used == 1:
            lighter = ", or set train.precision=bf16" if config.train.precision == "float32" else ""
            raise OutOfMemory(
                f"one image of {config.data.crop_size} does not fit: lower data.crop_size{lighter} ({error})"
            ) from error
        smaller = math.ceil(used / 2)
        store.write(MICRO_BATCH, json.dumps({"micro_batch": smaller, "step": step}).encode())
        raise OutOfMemory(
            f"{used} images a pass do not fit at step {step}; the next attempt takes {smaller}, gradients added up to the same "
            f"global batch ({error})",
            smaller=True,
        ) from error
