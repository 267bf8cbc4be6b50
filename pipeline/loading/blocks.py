"""Ray Data's unit of work: the rows of one rank over consecutive steps."""

from typing import NamedTuple

from pipeline.config.config import Config
from pipeline.loading.sampler import largest_share


class Block(NamedTuple):
    """The rows of one rank over consecutive steps: the unit of work of Ray Data."""

    first_step: int
    last_step: int
    rank: int


def num_blocks(first_step: int, steps: int, *, steps_per_block: int, workers: int) -> int:
    """Number of blocks that cover steps [first_step, steps) for all workers."""
    left, doublings = steps - first_step, _doublings(steps_per_block)
    if left < (1 << doublings):
        return left.bit_length() * workers
    return (doublings + -(-(left - (1 << doublings) + 1) // steps_per_block)) * workers


def block(index: int, first_step: int, steps: int, *, steps_per_block: int, workers: int) -> Block:
    """Block `index`. Ranks take turns, because Ray Data gives each block to the rank that received the fewest rows so far.

    The first blocks have 1, 2, 4, ... steps, so that the first batch comes early.
    """
    group, rank = divmod(index, workers)
    start, end = (first_step + _group_start(g, steps_per_block) for g in (group, group + 1))
    return Block(start, min(end, steps), rank)


def _group_start(group: int, steps_per_block: int) -> int:
    """Number of steps before a group of blocks; the groups have 1, 2, 4, ... steps and then steps_per_block."""
    doublings = _doublings(steps_per_block)
    return (1 << min(group, doublings)) - 1 + max(0, group - doublings) * steps_per_block


def _doublings(steps_per_block: int) -> int:
    return (steps_per_block - 1).bit_length()


def steps_per_block(config: Config, workers: int) -> int:
    """Training steps in one Ray Data block of one of `workers` workers."""
    return max(1, config.data.block_bytes // _step_bytes(config, workers))


def block_bytes(config: Config, workers: int) -> int:
    """Bytes of one Ray Data block of uint8 images and labels. Padding makes it the same for each of `workers` workers."""
    return steps_per_block(config, workers) * _step_bytes(config, workers)


def _step_bytes(config: Config, workers: int) -> int:
    # 4 bytes a pixel: RGB and the label.
    return largest_share(config.train.global_batch, workers) * 4 * config.data.crop_size[0] * config.data.crop_size[1]
