"""Batches of a training worker, with the place of every row checked, and whole images for evaluation."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.errors import SampleError
from pipeline.fault_tolerance.failures import RowsLost
from pipeline.images import codec, resize
from pipeline.loading.feed import Batch, Feed, decode
from pipeline.loading.sampler import Sampler, share
from pipeline.loading.samples import open_samples

if TYPE_CHECKING:
    import ray.data


class TrainingBatch(NamedTuple):
    """One rank's part of a global batch."""

    step: int
    image: torch.Tensor
    """uint8[b, 3, h, w], channels last; b rows are the rank's share."""
    label: torch.Tensor
    """uint8[b, h, w]."""
    replaced: int
    """Number of samples that could not be read and were replaced by another."""
    rows: tuple[int, int]
    """(first row, all rows): the first of these rows in the global batch, and the size of the global batch."""


def training_batches(data: "ray.data.Dataset | ray.data.DataIterator", feed: Feed, rank: int) -> Iterator[TrainingBatch]:
    """The batches of one rank from its part of the training data. `feed.first_step` is ignored; steps are read from the data.

    Raises what `checked_batches` raises.
    """
    rows = data.iter_batches(batch_size=feed.rows_per_step, batch_format="numpy", prefetch_batches=2)
    return checked_batches(iter(rows), feed.sampler, steps=feed.config.train.steps, rank=rank, workers=feed.workers)


def local_batches(feed: Feed) -> Iterator[TrainingBatch]:
    """The batches of a process that trains alone, made in this process. Raises what `Feed.rows` and `checked_batches` raise."""
    steps = feed.config.train.steps
    rows = (feed.steps(step, step + 1, rank=0) for step in range(feed.first_step, steps))
    return checked_batches(rows, feed.sampler, steps=steps, rank=0, workers=1)


def checked_batches(rows: Iterator[Batch], sampler: Sampler, *, steps: int, rank: int, workers: int) -> Iterator[TrainingBatch]:
    """The batches of one rank, with every row's place checked and the padding removed. The first batch gives the first step.

    Raises RowsLost when a row is not the one that the sampler puts there, or when the rows end before step `steps`.
    """
    step, (first_row, num_rows) = -1, share(sampler.global_batch, rank, workers)
    for batch in rows:
        step = step + 1 if step >= 0 else int(batch["step"][0])
        for name, expected in _places(sampler, step, rank, workers).items():
            if not np.array_equal(batch[name], expected):
                raise RowsLost(
                    f"data order broken at step {step}, rank {rank}: expected {name} {expected.tolist()}, got "
                    f"{batch[name].tolist()}"
                )
        image = torch.from_numpy(np.ascontiguousarray(batch["image"][:num_rows])).permute(0, 3, 1, 2)  # [b, 3, h, w]
        label = torch.from_numpy(np.ascontiguousarray(batch["label"][:num_rows]))  # [b, h, w]
        yield TrainingBatch(step, image, label, int(batch["replaced"].sum()), (first_row, sampler.global_batch))
    if step + 1 != steps:
        raise RowsLost(f"data ended after step {step + 1} of {steps} on rank {rank}: rows were lost")


def _places(sampler: Sampler, step: int, rank: int, workers: int) -> Batch:
    positions = sampler.positions(step, step + 1, rank, workers)
    return {"rank": np.full_like(positions, rank), "step": np.full_like(positions, step), "position": positions}


class Sample(NamedTuple):
    """One evaluation sample: image uint8[h, w, 3] RGB at evaluation scale, label uint8[H, W] at native resolution."""

    number: int
    """Position in the split; -1 for an image that pads a rank's share and is not counted."""
    sample_id: str
    image: codec.UInt8
    label: codec.UInt8


def evaluation_samples(config: Config, manifest: Manifest, split: str, indices: list[int], scale: float) -> Iterator[Sample]:
    """The samples at `indices` of a split, one at a time: whole images, and labels changed by the label map only.

    Index -1 is padding: an image of the split whose label is all ignored. Raises SampleError for a sample that cannot be read:
    an evaluation never skips an image.
    """
    samples, label_map = open_samples(config, manifest, split), manifest.label_lookup()
    for index, row in zip(indices, samples.ahead([max(index, 0) for index in indices]), strict=True):
        if isinstance(row, SampleError):
            raise row
        image, label = decode(row)
        truth = label_map[label] if index >= 0 else np.full_like(label, codec.IGNORE)
        try:
            scaled = resize.resize_image(image, scale)
        except MemoryError as error:
            raise SampleError(f"sample {row.sample_id} does not fit into memory ({error}): lower evaluate.scale") from error
        yield Sample(index, row.sample_id, scaled, truth)
