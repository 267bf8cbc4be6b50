"""From the plan to uint8 batches: Ray Data executes the plan block by block, workers check every row's place."""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray.data
import torch
from ray.data import ExecutionOptions
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import DataConfig

from pipeline import transforms
from pipeline.config import Config
from pipeline.plan import Plan, block, num_blocks
from pipeline.shards import Manifest, ShardReader, read_manifest
from pipeline.storage import Store, check, open_store

logger = logging.getLogger(__name__)

Batch = dict[str, npt.NDArray[Any]]


def open_data(config: Config) -> tuple[Store, Manifest]:
    """The packed data set, its bucket first checked by writing and reading back. Raises StorageError, ShardError."""
    check(open_store(config.storage.path, config.storage))
    store = open_store(config.data_url, config.storage)
    return store, read_manifest(store)


class Feed(NamedTuple):
    """All that a task needs to turn block numbers into augmented crops; pickles small."""

    config: Config
    store: Store
    manifest: Manifest
    first_step: int

    @property
    def plan(self) -> Plan:
        return Plan(self.manifest.num_images("train"), self.config.train.global_batch, self.config.seed)

    def rows(self, blocks: Batch) -> Batch:
        """Rows of the blocks `id`: image uint8[n, h, w, 3], label uint8[n, h, w], position, step and rank int64[n]."""
        rows = [self._block(int(index)) for index in blocks["id"]]
        return {key: np.concatenate([r[key] for r in rows]) for key in rows[0]}

    def _block(self, index: int) -> Batch:
        train, data = self.config.train, self.config.data
        place = block(index, self.first_step, train.steps, steps_per_block=data.steps_per_block, workers=train.workers)
        positions = self.plan.positions(place.first_step, place.last_step, place.rank, train.workers)
        epochs, samples = self.plan.samples(positions)
        image, label = self.crops(epochs, samples)
        steps = positions // train.global_batch
        return {"image": image, "label": label, "position": positions, "step": steps, "rank": np.full_like(steps, place.rank)}

    def crops(self, epochs: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> tuple[transforms.UInt8, transforms.UInt8]:
        """Augmented crops uint8[n, h, w, 3] and labels uint8[n, h, w] of sample indexes int64[n] in their epochs."""
        data = self.config.data
        reader, label_map = ShardReader(self.store, self.manifest, "train"), self.manifest.label_lookup()
        image = np.empty((len(samples), *data.crop, 3), np.uint8)
        label = np.empty((len(samples), *data.crop), np.uint8)
        for i, row in enumerate(reader.read(samples.tolist())):
            draw = transforms.draw(
                (row.height, row.width), crop=data.crop, scale=data.scale, scale_step=data.scale_step, flip=data.flip,
                seed=self.config.seed, epoch=int(epochs[i]), sample=int(samples[i]),
            )  # fmt: skip
            pair = decode(row.sample_id, row.image, row.label)
            image[i], truth = transforms.apply(*pair, draw, data.crop, MEAN_COLOUR)
            label[i] = label_map[truth]
        return image, label


# RGB mean of the published recipe, rounded to uint8: what lies outside an image is within half a grey level of zero.
MEAN_COLOUR = np.array([123, 117, 104], np.uint8)


def decode(sample_id: str, image: bytes, label: bytes) -> tuple[transforms.UInt8, transforms.UInt8]:
    """Image and label of one sample. Raises ValueError naming the sample."""
    try:
        return transforms.decode_image(image), transforms.decode_label(label)
    except ValueError as error:
        raise ValueError(f"sample {sample_id}: {error}; run jobs.prepare again") from error


class Unhurried(ExecutionCallback):
    """Holds Ray Data's scheduling loop to 20 rounds a second.

    A feed that is ahead of training is held back by leaving finished tasks unread; Ray 2.60 then finds them ready in every
    round and spins, which took three quarters of a core away from training (measured on two cores).
    """

    ROUND_S = 0.05

    def __init__(self) -> None:
        self.last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data at the end of each round."""
        time.sleep(max(0.0, self.ROUND_S - (time.monotonic() - self.last)))
        self.last = time.monotonic()


def training_data(feed: Feed) -> ray.data.Dataset:
    """Ray Dataset over the steps from `feed.first_step` to the last, in plan order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False  # the progress line says how the feed does
    context.custom_execution_callback_classes = [Unhurried]
    train, data = feed.config.train, feed.config.data
    blocks = num_blocks(feed.first_step, train.steps, steps_per_block=data.steps_per_block, workers=train.workers)
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


def planned_batches(
    rows: Iterator[Batch], plan: Plan, *, steps: int, rank: int, workers: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(step, image uint8[b, 3, h, w] channels last, label uint8[b, h, w]) of one rank, every row's position checked.

    The first batch says at which step the feed starts. Raises RuntimeError when a row is not the one the plan puts there, or
    when the rows end before step `steps`.
    """
    step = -1
    for rows_of_step in rows:
        step = step + 1 if step >= 0 else int(rows_of_step["step"][0])
        expected = plan.positions(step, step + 1, rank, workers)
        if not np.array_equal(rows_of_step["position"], expected):
            raise RuntimeError(
                f"data order broken at step {step}, rank {rank}: expected positions {expected[0]}..{expected[-1]}, "
                f"got {rows_of_step['position'].tolist()}; resume from the last checkpoint"
            )
        image = torch.from_numpy(np.ascontiguousarray(rows_of_step["image"])).permute(0, 3, 1, 2)  # [b, 3, h, w]
        yield step, image, torch.from_numpy(np.ascontiguousarray(rows_of_step["label"]))
    if step >= 0 and step + 1 != steps:
        raise RuntimeError(
            f"data ended after step {step + 1} of {steps} on rank {rank}: rows were lost; resume from the last checkpoint"
        )


class Sample(NamedTuple):
    """One evaluation sample: image uint8[h, w, 3] RGB at evaluation scale, label uint8[H, W] at its own resolution."""

    number: int
    sample_id: str
    image: transforms.UInt8
    label: transforms.UInt8


def evaluation_samples(store: Store, manifest: Manifest, split: str, indices: list[int], scale: float) -> Iterator[Sample]:
    """The samples at `indices` of a split, one at a time, whole images, labels untouched but for the label map."""
    reader, label_map = ShardReader(store, manifest, split), manifest.label_lookup()
    for start in range(0, len(indices), READ_AHEAD):
        chunk = indices[start : start + READ_AHEAD]
        for index, row in zip(chunk, reader.read(chunk), strict=True):
            image, label = decode(row.sample_id, row.image, row.label)
            yield Sample(index, row.sample_id, transforms.resize_image(image, scale), label_map[label])


READ_AHEAD = 8


def resumable(make: Callable[[], Feed]) -> Callable[[], ray.data.Dataset]:
    """A dataset that Ray Train evaluates at each start of the worker group, so that a restart begins at its checkpoint."""
    return partial(_from_feed, make)


def _from_feed(make: Callable[[], Feed]) -> ray.data.Dataset:
    return training_data(make())
