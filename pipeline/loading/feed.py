"""Turns block numbers into augmented crops, in a Ray Data task or in any other process.

Imports neither torch nor Ray, so that a fresh task worker is ready in a second.
"""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.checkpoints.retention import latest_step
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.data.shards import Row
from pipeline.errors import SampleError
from pipeline.images import codec
from pipeline.images.augment import Recipe, augment
from pipeline.loading.blocks import block, steps_per_block
from pipeline.loading.sampler import PADDING, Picks, Sampler, largest_share, oversampled
from pipeline.loading.samples import Samples, open_samples
from pipeline.loading.user_augment import augment_further, generator
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

Batch = dict[str, npt.NDArray[Any]]
Int64 = npt.NDArray[np.int64]


class Feed(NamedTuple):
    """All that a task needs to turn block numbers into augmented crops; small when pickled."""

    config: Config
    manifest: Manifest
    first_step: int
    workers: int
    """Number of training processes that share a global batch."""

    @property
    def sampler(self) -> Sampler:
        """The sample order of the training split."""
        config, split = self.config, self.manifest.splits["train"]
        labels = {name: label for label, name in enumerate(self.manifest.class_names)}
        # Sorted by class: a configuration that lists the same classes in another order is the same run.
        weights = dict(sorted((labels[name], weight) for name, weight in config.data.oversample.items()))
        streams = oversampled(split.num_images, dict(enumerate(split.images)), weights)
        return Sampler(split.num_images, config.train.global_batch, config.seed, streams)

    @property
    def rows_per_step(self) -> int:
        """Number of rows of each worker in each step, padding included."""
        return largest_share(self.config.train.global_batch, self.workers)

    def rows(self, blocks: Batch) -> Batch:
        """Rows of the blocks `id`.

        image uint8[n, h, w, 3], label uint8[n, h, w]; position, step, rank int64[n]; replaced bool[n].
        """
        rows = [self._block(int(index)) for index in blocks["id"]]
        return rows[0] if len(rows) == 1 else {key: np.concatenate([r[key] for r in rows]) for key in rows[0]}

    def _block(self, index: int) -> Batch:
        config, workers = self.config, self.workers
        place = block(
            index, self.first_step, config.train.steps, steps_per_block=steps_per_block(config, workers), workers=workers
        )
        return self.steps(place.first_step, place.last_step, place.rank)

    def steps(self, first_step: int, last_step: int, rank: int) -> Batch:
        """Rows of one rank for the steps [first_step, last_step), as `rows`."""
        positions = self.sampler.positions(first_step, last_step, rank, self.workers)
        image, label, replaced = self.crops(positions)
        steps = np.repeat(np.arange(first_step, last_step), self.rows_per_step)
        return {
            "image": image, "label": label, "position": positions, "step": steps, "rank": np.full_like(steps, rank),
            "replaced": replaced,
        }  # fmt: skip

    def crops(self, positions: Int64) -> tuple[codec.UInt8, codec.UInt8, npt.NDArray[np.bool_]]:
        """Augmented crops uint8[n, h, w, 3], labels uint8[n, h, w], and replaced bool[n].

        A row is `replaced` if it is another sample in place of one that cannot be read. Crops and labels are 0 at PADDING.
        Raises SampleError for a sample that is missing or corrupt, unless `data.max_skipped` lets it be replaced.
        """
        crop, seed = self.config.data.crop_size, self.config.seed
        samples, label_map = open_samples(self.config, self.manifest, "train"), self.manifest.label_lookup()
        rows = np.flatnonzero(positions != PADDING)
        picks, recipe = self.sampler.picks(positions[rows]), self.recipe
        numbers, num_classes = self.samples_of(picks, samples), len(self.manifest.class_names)
        image = np.zeros((len(positions), *crop, 3), np.uint8)
        label = np.zeros((len(positions), *crop), np.uint8)
        replaced = np.zeros(len(positions), bool)
        for i, (sample, pixels, ids) in enumerate(self._decoded(samples, numbers)):
            row = rows[i]
            replaced[row] = sample != numbers[i]
            epoch, stream = int(picks.epoch[i]), int(picks.stream[i])
            crops = augment(pixels, ids, label_map, recipe, seed=seed, epoch=epoch, sample=sample, stream=stream)
            if own := self.config.data.augment:
                crops = augment_further(own, *crops, num_classes, generator(seed, epoch, sample, stream))
            image[row], label[row] = crops
        return image, label, replaced

    @property
    def recipe(self) -> Recipe:
        """The augmentation of this configuration."""
        data = self.config.data
        return Recipe(data.crop_size, data.scale, data.scale_step, data.short_sides, data.flip, data.cat_max, data.photometric)

    def samples_of(self, picks: Picks, samples: Samples) -> Int64:
        """Positions int64[n] in the split of the picked samples."""
        numbers = picks.place.copy()
        for number, stream in enumerate(self.sampler.oversampled, start=1):
            mine = picks.stream == number
            assert stream.label is not None
            numbers[mine] = samples.index.members(stream.label, picks.place[mine])
        return numbers

    def _decoded(self, samples: Samples, numbers: Int64) -> Iterator[tuple[int, codec.UInt8, codec.UInt8]]:
        """(number, image, label) for each of `numbers`; a sample that cannot be read is replaced by the next readable one."""
        for number, row in zip(numbers.tolist(), samples.ahead(numbers.tolist()), strict=True):
            for following in range(self.config.data.max_skipped + 1):
                stand_in = (number + following) % samples.index.num_images
                found = row if following == 0 else samples.try_read([stand_in])[0]
                try:
                    if isinstance(found, SampleError):
                        raise found
                    yield stand_in, *decode(found)
                    break
                except SampleError as error:
                    if following == self.config.data.max_skipped:
                        raise
                    logger.warning("replaced by the next sample: %s", error)


def resumed(config: Config, manifest: Manifest, checkpoints: Store, workers: int) -> Feed:
    """The training data of `workers` processes from the newest checkpoint on.

    No other place decides where a start begins, so data and weights cannot disagree.
    """
    return Feed(config, manifest, latest_step(checkpoints), workers)


def decode(row: Row) -> tuple[codec.UInt8, codec.UInt8]:
    """Image uint8[H, W, 3] and label uint8[H, W] with the ids as stored. Raises SampleError naming the sample."""
    try:
        return codec.decode_image(row.image), codec.decode_label(row.label)
    except Exception as error:  # of any type: one odd file must be named, and may be replaced
        reason = error if isinstance(error, ValueError) else f"cannot be decoded: {type(error).__name__}: {error}"
        raise SampleError(f"sample {row.sample_id}: {reason}; run python -m jobs.prepare CONFIG again") from error
