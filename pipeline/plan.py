"""Which sample at which step on which rank: pure functions of the seed, in O(1) memory for any number of samples.

Law 1: global position p = step * global_batch + j holds sample `permutation(seed, p // N)[p % N]`. The permutation is never
listed: it is a keyed bijection of [0, N), a Feistel network over the next even number of bits, walked until it lands inside
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, method "cycle walking").
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

NUM_ROUNDS = 8  # four suffice for large domains; small ones need more to look uniform


class Plan(NamedTuple):
    """The order of one training run: one endless stream of positions over all epochs."""

    num_samples: int
    global_batch: int
    seed: int

    def samples(self, positions: Int64) -> tuple[Int64, Int64]:
        """Epoch and sample index, int64[n] each, of global positions int64[n]."""
        epochs = positions // self.num_samples
        return epochs, permute(positions % self.num_samples, epochs, num_samples=self.num_samples, seed=self.seed)

    def positions(self, first_step: int, last_step: int, rank: int, workers: int) -> Int64:
        """Positions int64[(last_step - first_step) * batch] of one rank: rows [rank * b, (rank + 1) * b) of each global batch."""
        if self.global_batch % workers:
            raise ValueError(f"train.global_batch = {self.global_batch}: must be a multiple of the {workers} workers")
        batch = self.global_batch // workers
        steps = np.arange(first_step, last_step, dtype=np.int64)[:, None]
        return (steps * self.global_batch + rank * batch + np.arange(batch, dtype=np.int64)).reshape(-1)


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


class Block(NamedTuple):
    """The rows of one rank over consecutive steps: the unit of work of Ray Data."""

    first_step: int
    last_step: int
    rank: int


def num_blocks(first_step: int, steps: int, *, steps_per_block: int, workers: int) -> int:
    """Blocks that cover steps [first_step, steps) for all workers."""
    return -(-(steps - first_step) // steps_per_block) * workers


def block(index: int, first_step: int, steps: int, *, steps_per_block: int, workers: int) -> Block:
    """Block `index`; ranks take turns, because Ray Data deals equal blocks out in turn."""
    group, rank = divmod(index, workers)
    start = first_step + group * steps_per_block
    return Block(start, min(start + steps_per_block, steps), rank)
