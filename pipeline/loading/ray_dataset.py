"""Delivers the training samples through Ray Data, in the sampler's order, block by block.

Does not import torch: the processes that only schedule blocks import this file, and start in half the time without torch.
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
    """Ray Dataset over the steps from `feed.first_step` to the last, in the sampler's order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False  # training logs its own progress
    context.custom_execution_callback_classes = [ThrottledExecution]
    # Ray budgets memory by this size. The default of 128 MiB would hold back tasks whose blocks are far smaller.
    context.target_max_block_size = block_bytes(feed.config, feed.workers)
    context.memory_usage_poll_interval_s = None  # otherwise each task runs a thread that is of no use here
    train, data = feed.config.train, feed.config.data
    per_block = steps_per_block(feed.config, feed.workers)
    blocks = num_blocks(feed.first_step, train.steps, steps_per_block=per_block, workers=feed.workers)
    # ray.data.range would request a whole CPU for each task, which a small cluster full of training workers never has free.
    numbers: ray.data.Dataset = ray.data.read_datasource(
        RangeDatasource(n=blocks, block_format="arrow", column_name="id"),
        num_cpus=data.cpus_per_task,
        override_num_blocks=max(1, blocks),
    )
    return numbers.map_batches(feed.rows, batch_size=None, batch_format="numpy", num_cpus=data.cpus_per_task)


def ordered_execution() -> ExecutionOptions:
    """Options that make Ray Data deliver blocks in the order of their numbers."""
    return ExecutionOptions(preserve_order=True)


def placeholder() -> ray.data.Dataset:
    """An empty dataset for the arguments of a trainer, which are made before the number of workers is known."""
    return ray.data.range(0)


class ResumableDataConfig(DataConfig):
    """Replaces the `placeholder` by the training data at each start of a worker group: only then is the group's size known.

    `make` takes the number of workers and decides where a (re)start begins. It runs next to Ray Train's controller, not in a
    worker.
    """

    def __init__(self, make: Callable[[int], Feed]) -> None:
        super().__init__(execution_options=ordered_execution())
        self.make = make

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *handles_and_nodes: Any, **named: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """For each worker, the part of the data that it iterates over. Ray Train calls this."""
        made = {name: training_data(self.make(world_size)) for name in datasets}
        parts: list[dict[str, ray.data.DataIterator]] = super().configure(made, world_size, *handles_and_nodes, **named)
        return parts
