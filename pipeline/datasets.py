"""The plan executed by Ray Data, block by block; workers check every row's place. And the whole images of an evaluation."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import ray.data
import torch
from ray.data import ExecutionOptions
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.train import DataConfig

from pipeline import transforms
from pipeline.config import Config
from pipeline.feed import Batch, Feed, decode
from pipeline.plan import Plan, num_blocks
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
    context.target_max_block_size = feed.config.block_bytes
    context.memory_usage_poll_interval_s = None  # a thread for each task, of no use here
    train, data = feed.config.train, feed.config.data
    steps_per_block = feed.config.steps_per_block
    blocks = num_blocks(feed.first_step, train.steps, steps_per_block=steps_per_block, workers=train.workers)
    # ray.data.range would ask for a whole CPU a task, which a small cluster full of training workers never has.
    numbers: ray.data.Dataset = ray.data.read_datasource(
        RangeDatasource(n=blocks, block_format="arrow", column_name="id"),
        num_cpus=data.cpus_per_task,
        override_num_blocks=max(1, blocks),
    )
    return numbers.map_batches(feed.rows, batch_size=None, batch_format="numpy", num_cpus=data.cpus_per_task)


def data_config() -> DataConfig:
    """Blocks reach the workers in plan order."""
    return DataConfig(execution_options=ExecutionOptions(preserve_order=True))


class TrainingBatch(NamedTuple):
    """One rank's part of a global batch."""

    step: int
    image: torch.Tensor
    """uint8[b, 3, h, w], channels last."""
    label: torch.Tensor
    """uint8[b, h, w]."""
    replaced: int
    """Samples that could not be read and were replaced by another."""


def planned_batches(rows: Iterator[Batch], plan: Plan, *, steps: int, rank: int, workers: int) -> Iterator[TrainingBatch]:
    """The batches of one rank, every row's position, step and rank checked; the first says at which step the feed starts.

    Raises RuntimeError when a row is not the one the plan puts there, or when the rows end before step `steps`.
    """
    step = -1
    for batch in rows:
        step = step + 1 if step >= 0 else int(batch["step"][0])
        for name, expected in _places(plan, step, rank, workers).items():
            if not np.array_equal(batch[name], expected):
                raise RuntimeError(
                    f"data order broken at step {step}, rank {rank}: expected {name} {expected.tolist()}, got "
                    f"{batch[name].tolist()}; resume from the last checkpoint"
                )
        image = torch.from_numpy(np.ascontiguousarray(batch["image"])).permute(0, 3, 1, 2)  # [b, 3, h, w]
        label = torch.from_numpy(np.ascontiguousarray(batch["label"]))
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


def resumable(make: Callable[[], Feed]) -> Callable[[], ray.data.Dataset]:
    """A dataset that Ray Train evaluates at each start of the worker group, so that a restart begins at its checkpoint."""
    return partial(_from_feed, make)


def _from_feed(make: Callable[[], Feed]) -> ray.data.Dataset:
    return training_data(make())
