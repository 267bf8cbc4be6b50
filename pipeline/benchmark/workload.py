"""The work of the benchmark's own processes. Imports neither torch nor Ray, like a fresh task worker of Ray Data."""

import time
from collections.abc import Callable, Sequence
from threading import Barrier
from typing import TYPE_CHECKING, NamedTuple

from pipeline.benchmark.processes import own_peak
from pipeline.loading.feed import Feed, Int64, decode
from pipeline.loading.samples import open_samples

if TYPE_CHECKING:
    import torch

READY_S = 180
"""Longest wait for the other processes of a pool, in seconds."""

_barrier: Barrier | None = None


class Share(NamedTuple):
    """The steps that one process ran, and their times on the machine's monotonic clock, in seconds."""

    steps: tuple[int, ...]
    started: float
    first_done: float
    ended: float


def join(barrier: Barrier) -> None:
    """Initializer of a pool whose processes start their work together."""
    global _barrier
    _barrier = barrier


def decode_share(feed: Feed, steps: Sequence[int]) -> Share:
    """Decodes the images and labels of the steps from memory."""
    samples = open_samples(feed.config, feed.manifest, "train")
    numbers = {step: feed.samples_of(feed.sampler.picks(positions(feed, step)), samples).tolist() for step in steps}
    distinct = sorted({number for mine in numbers.values() for number in mine})
    rows = dict(zip(distinct, samples.read(distinct), strict=True))

    def run(step: int) -> None:
        for number in numbers[step]:
            decode(rows[number])

    return _together(steps, lambda: decode(rows[distinct[0]]), run)


def feed_share(feed: Feed, steps: Sequence[int]) -> Share:
    """Fetches, decodes and augments the steps into batch arrays."""
    return _together(steps, lambda: feed.crops(positions(feed, steps[0])[:1]), lambda step: feed.crops(positions(feed, step)))


def positions(feed: Feed, step: int) -> Int64:
    """Positions int64[n] of a whole step."""
    return feed.sampler.positions(step, step + 1, 0, 1)


def _together(steps: Sequence[int], warm: Callable[[], object], run: Callable[[int], object]) -> Share:
    assert _barrier is not None
    try:
        warm()
        _barrier.wait(READY_S)
    except BaseException:
        _barrier.abort()  # otherwise the others wait for this one
        raise
    times = [time.perf_counter()]
    for step in steps:
        run(step)
        times.append(time.perf_counter())
    return Share(tuple(steps), times[0], times[1], times[-1])


class Steps:
    """Map-style dataset of torch: item `step` is the step's number, image uint8[b, h, w, 3] and label uint8[b, h, w]."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __len__(self) -> int:
        return self.feed.config.train.steps

    def __getitem__(self, step: int) -> "tuple[int, torch.Tensor, torch.Tensor]":
        import torch  # only here, because the other processes must not import it

        image, label, _ = self.feed.crops(positions(self.feed, step))
        return step, torch.from_numpy(image), torch.from_numpy(label)


class Opening(NamedTuple):
    """Times and memory of the first steps of a feed in a separate process."""

    first_batch_s: float
    images_per_s: float
    """Rate after the first batch."""
    peak_bytes: int


def open_feed(feed: Feed, num_steps: int) -> Opening:
    """Runs the first steps of a feed in a process that has done nothing else."""
    times = [time.perf_counter()]
    for step in range(num_steps):
        feed.crops(positions(feed, step))
        times.append(time.perf_counter())
    rate = (num_steps - 1) * feed.config.train.global_batch / (times[-1] - times[1])
    return Opening(times[1] - times[0], rate, own_peak())
