"""The plan executed by Ray Data, block by block; workers check every row's place. And the whole images of an evaluation."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import ray.data
import torch
from ray.data import ExecutionOptions
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.train import DataConfig

from pipeline import transforms
from pipeline.config import Config
from pipeline.feed import Batch, Feed, decode
from pipeline.plan import Plan, num_blocks, share
from pipeline.samples import SampleError, open_samples
from pipeline.shards import Manifest, ShardError, read_manifest
from pipeline.storage import check, open_store
from pipeline.unhurried import Unhurried


def open_data(config: Config) -> Manifest:
    """The prepared data set, its bucket first checked by writing and reading back. Raises StorageError, ShardError."""
    check(open_store(config.storage.path, config.storage))
    manifest, data = read_manifest(open_store(config.data_url, config.storage)), config.data
    for setting, prepared, wanted in (("layout", manifest.layout, data.layout), ("packed", manifest.packed, data.packed)):
        if prepared != wanted:
            raise ShardError(
                f"{config.data_url}: was prepared with data.{setting}={prepared}, the configuration says {wanted}: set it so, or "
                "run python -m jobs.prepare CONFIG again"
            )
    return manifest


def training_data(feed: Feed) -> ray.data.Dataset:
    """Ray Dataset over the steps from `feed.first_step` to the last, in plan order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False  # the progress line says how the feed does
    context.custom_execution_callback_classes = [Unhurried]
    # Ray plans its memory by this size, 128 MiB by default: it would hold back tasks whose blocks are far smaller.
    context.target_max_block_size = feed.config.block_bytes(feed.workers)
    context.memory_usage_poll_interval_s = None  # a thread for each task, of no use here
    train, data = feed.config.train, feed.config.data
    steps_per_block = feed.config.steps_per_block(feed.workers)
    blocks = num_blocks(feed.first_step, train.steps, steps_per_block=steps_per_block, workers=feed.workers)
    # ray.data.range would ask for a whole CPU a task, which a small cluster full of training workers never has.
    numbers: ray.data.Dataset = ray.data.read_datasource(
        RangeDatasource(n=blocks, block_format="arrow", column_name="id"),
        num_cpus=data.cpus_per_task,
        override_num_blocks=max(1, blocks),
    )
    return numbers.map_batches(feed.rows, batch_size=None, batch_format="numpy", num_cpus=data.cpus_per_task)


def in_plan_order() -> ExecutionOptions:
    """What makes Ray Data hand blocks on in the order of their numbers."""
    return ExecutionOptions(preserve_order=True)


def placeholder() -> ray.data.Dataset:
    """Stands for the training data in the arguments of a trainer, which are made before the number of workers is known."""
    return ray.data.range(0)


class PlannedData(DataConfig):
    """Puts the training data in the place of the `placeholder` at each start of a worker group, whose size is known only then.

    `make` takes the number of workers and decides where a (re)start begins; it runs beside Ray Train's controller.
    """

    def __init__(self, make: Callable[[int], Feed]) -> None:
        super().__init__(execution_options=in_plan_order())
        self.make = make

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *handles_and_nodes: Any, **named: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """For each worker the part of the data that it iterates over; called by Ray Train."""
        planned = {name: training_data(self.make(world_size)) for name in datasets}
        parts: list[dict[str, ray.data.DataIterator]] = super().configure(planned, world_size, *handles_and_nodes, **named)
        return parts


class TrainingBatch(NamedTuple):
    """One rank's part of a global batch."""

    step: int
    image: torch.Tensor
    """uint8[b, 3, h, w], channels last; b rows are the rank's share."""
    label: torch.Tensor
    """uint8[b, h, w]."""
    replaced: int
    """Samples that could not be read and were replaced by another."""


def training_batches(data: ray.data.Dataset | ray.data.DataIterator, feed: Feed, rank: int) -> Iterator[TrainingBatch]:
    """The batches of one rank from its part of the training data; `feed.first_step` is of no account, the data decides.

    Raises what `planned_batches` raises.
    """
    rows = data.iter_batches(batch_size=feed.rows_per_step, batch_format="numpy", prefetch_batches=2)
    return planned_batches(iter(rows), feed.plan, steps=feed.config.train.steps, rank=rank, workers=feed.workers)


def planned_batches(rows: Iterator[Batch], plan: Plan, *, steps: int, rank: int, workers: int) -> Iterator[TrainingBatch]:
    """The batches of one rank, every row's place checked and padding left out; the first says at which step the feed starts.

    Raises RuntimeError when a row is not the one the plan puts there, or when the rows end before step `steps`.
    """
    step, num_rows = -1, share(plan.global_batch, rank, workers)[1]
    for batch in rows:
        step = step + 1 if step >= 0 else int(batch["step"][0])
        for name, expected in _places(plan, step, rank, workers).items():
            if not np.array_equal(batch[name], expected):
                raise RuntimeError(
                    f"data order broken at step {step}, rank {rank}: expected {name} {expected.tolist()}, got "
                    f"{batch[name].tolist()}; resume from the last checkpoint"
                )
        image = torch.from_numpy(np.ascontiguousarray(batch["image"][:num_rows])).permute(0, 3, 1, 2)  # [b, 3, h, w]
        label = torch.from_numpy(np.ascontiguousarray(batch["label"][:num_rows]))  # [b, h, w]
        yield TrainingBatch(step, image, label, int(batch["replaced"].sum()))
    if step + 1 != steps:
        raise RuntimeError(
            f"data ended after step {step + 1} of {steps} on rank {rank}: rows were lost; resume from the last checkpoint"
        )


def _places(plan: Plan, step: int, rank: int, workers: int) -> Batch:
    positions = plan.positions(step, step + 1, rank, workers)
    return {"rank": np.full_like(positions, rank), "step": np.full_like(positions, step), "position": positions}


class Sample(NamedTuple):
    """One evaluation sample: image uint8[h, w, 3] RGB at evaluation scale, label uint8[H, W] at its own resolution."""

    number: int
    """Position in the split; -1 for one that pads a rank's share and is not counted."""
    sample_id: str
    image: transforms.UInt8
    label: transforms.UInt8


def evaluation_samples(config: Config, manifest: Manifest, split: str, indices: list[int], scale: float) -> Iterator[Sample]:
    """The samples at `indices` of a split, one at a time, whole images, labels untouched but for the label map.

    Index -1 pads: an image of the split whose label is all ignored. Raises SampleError for one that cannot be read: an
    evaluation never leaves an image out.
    """
    samples, label_map = open_samples(config, manifest, split), manifest.label_lookup()
    for index, row in zip(indices, samples.ahead([max(index, 0) for index in indices]), strict=True):
        if isinstance(row, SampleError):
            raise row
        image, label = decode(row)
        truth = label_map[label] if index >= 0 else np.full_like(label, transforms.IGNORE)
        yield Sample(index, row.sample_id, transforms.resize_image(image, scale), truth)
