"""Keeps Ray Data's scheduling quiet. A separate file because every task imports it and must not import torch."""

import logging
import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback


class ThrottledExecution(ExecutionCallback):
    """Limits Ray Data's scheduling loop to 20 rounds a second while nothing moves.

    When the feed is ahead of training, Ray Data leaves finished tasks unread to hold it back. Ray 2.60 then finds them ready in
    every round and spins, which took three quarters of a core away from training (measured on two cores).
    """

    ROUND_S = 0.05

    def __init__(self) -> None:
        self.last = 0.0
        self.moved = -1

    def before_execution_starts(self, executor: Any) -> None:
        """Called by Ray Data in the process that hands out the blocks.

        There Ray would print a fault of a task with its remote traceback. The worker gets the same fault, and the run ends with
        it.
        """
        logging.getLogger("ray.data._internal.iterator.stream_split_iterator").setLevel(logging.ERROR)

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data at the end of each round."""
        moved = sum(
            op.metrics.num_tasks_submitted + op.metrics.num_task_outputs_generated + op.metrics.num_outputs_taken
            for op in executor._topology
        )
        if moved == self.moved:
            time.sleep(max(0.0, self.ROUND_S - (time.monotonic() - self.last)))
        self.moved, self.last = moved, time.monotonic()
