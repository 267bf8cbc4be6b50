"""The plan executed by Ray Data, block by block.

Without torch: the processes that only plan and hand on blocks import this, and they start in half the time.
"""

from collections.abc import Callable
from typing import Any

import ray.data
from ray.data import ExecutionOptions
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.train import DataConfig

from pipeline.loading.blocks import block_bytes, num_blocks, steps_per_block
from pipeline.loading.feed import Feed
from pipeline.loading.throttle import ThrottledExecution


def training_data(feed: Feed) -> ray.data.Dataset:
    """Ray Dataset over the steps from `feed.first_step` to the last, in plan order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False  # the progress line says how the feed does
    context.custom_execution_callback_classes = [ThrottledExecution]
    # Ray plans its memory by this size, 128 MiB by default: it would hold back tasks whose blocks are far smaller.
    context.target_max_block_size = block_bytes(feed.config, feed.workers)
    context.memory_usage_poll_interval_s = None  # a thread for each task, of no use here
    train, data = feed.config.train, feed.config.data
    per_block = steps_per_block(feed.config, feed.workers)
    blocks = num_blocks(feed.first_step, train.steps, steps_per_block=per_block, workers=feed.workers)
    # ray.data.range would ask for a whole CPU a task, which a small cluster full of training workers never has.
    numbers: ray.data.Dataset = ray.data.read_datasource(
        RangeDatasource(n=blocks, block_format="arrow", column_name="id"),
        num_cpus=data.cpus_per_task,
        override_num_blocks=max(1, blocks),
    )
    return numbers.map_batches(feed.rows, batch_size=None, batch_format="numpy", num_cpus=data.cpus_per_task)


def ordered_execution() -> ExecutionOptions:
    """What makes Ray Data hand blocks on in the order of their numbers."""
    return ExecutionOptions(preserve_order=True)


def placeholder() -> ray.data.Dataset:
    """Stands for the training data in the arguments of a trainer, which are made before the number of workers is known."""
    return ray.data.range(0)


class ResumableDataConfig(DataConfig):
    """Puts the training data in the place of the `placeholder` at each start of a worker group, whose size is known only then.

    `make` takes the number of workers and decides where a (re)start begins; it runs beside Ray Train's controller.
    """

    def __init__(self, make: Callable[[int], Feed]) -> None:
        super().__init__(execution_options=ordered_execution())
        self.make = make

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *handles_and_nodes: Any, **named: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """For each worker the part of the data that it iterates over; called by Ray Train."""
        planned = {name: training_data(self.make(world_size)) for name in datasets}
        parts: list[dict[str, ray.data.DataIterator]] = super().configure(planned, world_size, *handles_and_nodes, **named)
        return parts
