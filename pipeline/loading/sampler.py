"""Maps step and rank to samples: pure functions of the seed, in O(1) memory for any number of samples.

Law 1: global position p = step * global_batch + j holds sample `permutation(seed, p // N)[p % N]`. The permutation is never
stored: it is a keyed bijection of [0, N), a Feistel network over the next even number of bits, applied again until the result
is inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, method "cycle walking").

Oversampling applies the same law to several streams: each configured class has a separate stream over the images that contain
it, and a permutation of the epoch's positions decides which stream a position draws from. An epoch still has N positions.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

NUM_ROUNDS = 8  # four suffice for large domains; small ones need more to look uniform
PADDING = -1
"""Position of a row that holds no sample."""


class Stream(NamedTuple):
    """Images that an epoch draws from: all of them, or those that contain one class."""

    label: int | None
    num_images: int
    per_epoch: int
    """Number of positions in each epoch that draw from this stream."""


class Picks(NamedTuple):
    """The samples drawn at n positions, int64[n] each."""

    stream: Int64
    """Number of the stream; stream 0 has all images."""
    epoch: Int64
    """Number of times that the stream had gone through all its images before."""
    place: Int64
    """Index among the stream's images; for stream 0 the sample's position in the split."""


class Sampler(NamedTuple):
    """The sample order of one training run: an endless sequence of positions over all epochs."""

    num_samples: int
    global_batch: int
    seed: int
    oversampled: tuple[Stream, ...] = ()

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All images first, then the oversampled classes; their positions add up to an epoch."""
        rest = self.num_samples - sum(s.per_epoch for s in self.oversampled)
        return (Stream(None, self.num_samples, rest), *self.oversampled)

    def picks(self, positions: Int64) -> Picks:
        """The samples drawn at global positions int64[n]."""
        epochs, within = positions // self.num_samples, positions % self.num_samples
        if not self.oversampled:
            place = permute(within, epochs, num_samples=self.num_samples, seed=self.seed)
            return Picks(np.zeros_like(place), epochs, place)
        # A separate seed, so that a stream's positions do not depend on the order of its images.
        turn = permute(within, epochs, num_samples=self.num_samples, seed=_stream_seed(self.seed, len(self.streams)))
        starts = np.cumsum([0, *(s.per_epoch for s in self.streams)])
        number = np.searchsorted(starts, turn, side="right") - 1
        picks = Picks(number, np.empty_like(number), np.empty_like(number))
        for index, stream in enumerate(self.streams):
            mine = number == index
            drawn = epochs[mine] * stream.per_epoch + turn[mine] - starts[index]
            epoch = drawn // stream.num_images
            picks.epoch[mine] = epoch
            picks.place[mine] = permute(
                drawn % stream.num_images, epoch, num_samples=stream.num_images, seed=_stream_seed(self.seed, index)
            )
        return picks

    def positions(self, first_step: int, last_step: int, rank: int, workers: int) -> Int64:
        """Positions int64[(last_step - first_step) * largest_share] of the rows that one rank gets, step by step.

        If the rank's share is smaller than the largest, each step ends with PADDING: Ray Data deals blocks out by their number
        of rows, so the blocks of all ranks must have the same number.
        """
        first_row, num_rows = share(self.global_batch, rank, workers)
        rows = np.arange(largest_share(self.global_batch, workers), dtype=np.int64)
        steps = np.arange(first_step, last_step, dtype=np.int64)[:, None]
        return np.where(rows < num_rows, steps * self.global_batch + first_row + rows, PADDING).reshape(-1)


def share(global_batch: int, rank: int, workers: int) -> tuple[int, int]:
    """(first row, number of rows) of one rank's share of a global batch; the numbers of rows differ by one at most.

    Raises ValueError for more workers than rows: one worker would have no rows.
    """
    if workers > global_batch:
        raise ValueError(f"train.global_batch = {global_batch}: fewer images than the {workers} workers (lower train.workers)")
    first_row, end = rank * global_batch // workers, (rank + 1) * global_batch // workers
    return first_row, end - first_row


def largest_share(global_batch: int, workers: int) -> int:
    """Number of rows in the largest share of a global batch."""
    return -(-global_batch // workers)


def oversampled(num_samples: int, images: Mapping[int, int], weights: Mapping[int, float]) -> tuple[Stream, ...]:
    """A stream for each class of `weights`. Its share of an epoch is weight / (1 + sum of weights), rounded down.

    `images`: class -> number of images that contain it. Raises ValueError for a class that no image contains.
    """
    total = 1 + sum(weights.values())
    for label in weights:
        if not images[label]:
            raise ValueError(f"data.oversample: no training image contains class {label}")
    return tuple(Stream(label, images[label], int(num_samples * weight / total)) for label, weight in weights.items())


def evaluation_share(num_images: int, rank: int, workers: int) -> list[int]:
    """Images rank, rank + workers, ... of a split, padded with -1 if the rank has one image less than rank 0.

    All ranks together have every image once. Each rank has the same number of indices, so that all ranks make the same number
    of passes.
    """
    indices = range(rank, num_images, workers)
    return [*indices, *[PADDING] * (-(-num_images // workers) - len(indices))]


def permute(index: Int64, epoch: Int64, *, num_samples: int, seed: int) -> Int64:
    """Position `index` of the epoch's permutation of [0, num_samples), elementwise; a bijection for each (seed, epoch)."""
    half = np.uint64(max(1, (int(num_samples - 1).bit_length() + 1) // 2))
    key = _mix(_mix(np.full(1, seed, np.uint64)) ^ epoch.astype(np.uint64))
    value = index.astype(np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        value[outside] = _feistel(value[outside], key[outside], half)
        outside = value >= np.uint64(num_samples)
    return value.astype(np.int64)


def _stream_seed(seed: int, stream: int) -> int:
    """The seed of a stream. Run seeds are below 2^32, so it is never the seed of another run's stream 0."""
    return seed | stream << 32


def _feistel(value: UInt64, key: UInt64, half: np.uint64) -> UInt64:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for turn in range(NUM_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(key + np.uint64(turn))) & mask)
    return left << half | right


def _mix(value: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): every input bit moves every output bit."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)
