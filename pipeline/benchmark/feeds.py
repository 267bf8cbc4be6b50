"""The stages of the feed, each over the same steps in the same order and on the same number of processes."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch.utils.data

from pipeline.benchmark.processes import SPAWN, PeakMemory, family
from pipeline.benchmark.workload import Share, Steps, decode_share, feed_share, join
from pipeline.loading.batches import training_batches
from pipeline.loading.feed import Feed
from pipeline.loading.ray_dataset import ordered_execution, training_data

LOAD = 0.8
"""Rate of the paced consumer, as a share of the bare loop's."""


class Measured(NamedTuple):
    """One stage in one round."""

    images_per_s: float
    """Rate at steady state."""
    from_request: float | None
    """Images per second from the request for the feed to its last batch, including the start."""
    first_batch_s: float | None
    """Seconds from the request for the feed to its first batch."""
    data_wait: float | None
    """Share of the time that a consumer at `LOAD` of the bare loop's rate waits for the next batch."""
    peak_bytes: int | None
    """Peak memory of the stage's own processes; None on a cluster that this process joined."""
    steps: tuple[int, ...]
    """The steps that the stage ran, ascending."""


class Length(NamedTuple):
    """Number of steps of a round: `flat` steps as fast as they come, and `paced` steps to a consumer that takes its time."""

    flat: int
    paced: int

    @classmethod
    def of(cls, images: int, global_batch: int, cores: int) -> "Length":
        """Steps for at least `images` images, an equal share for each core; half as many paced steps."""
        share = max(4, -(-images // (global_batch * cores)))
        return cls(share * cores, max(4, share * cores // 2))


def one_round(feed: Feed, length: Length, cores: int) -> dict[str, Measured]:
    """Runs each stage once, one after the other. None leaves a process behind, except Ray's own."""
    flat, paced = first_steps(feed, length.flat), first_steps(feed, length.paced)
    stages = {
        "decode only": _pool(decode_share, flat, cores, first_batch=False),
        "bare loop": _pool(feed_share, flat, cores, first_batch=True),
    }
    pace_s = feed.config.train.global_batch / (LOAD * stages["bare loop"].images_per_s)
    # A joined cluster's processes are no descendants of this process, so their memory cannot be read.
    of_ray = list if os.environ.get("RAY_ADDRESS") else partial(family, os.getpid())
    for stage, run, pids in (("torch DataLoader", data_loader, _own), ("Ray Data", ray_data, of_ray)):
        measured = run(flat, cores, 0.0)
        with PeakMemory(pids) as peak:  # costs a tenth of these cores, so not while the rate is measured
            wait = run(paced, cores, pace_s).data_wait
        stages[stage] = measured._replace(data_wait=wait, peak_bytes=peak.bytes or None)
    return stages


def first_steps(feed: Feed, steps: int) -> Feed:
    """The feed of a training run of `steps` steps."""
    train = feed.config.train.model_copy(update={"steps": steps})
    return feed._replace(config=feed.config.model_copy(update={"train": train}))


def _pool(work: Callable[[Feed, range], Share], feed: Feed, cores: int, *, first_batch: bool) -> Measured:
    """Deals the steps out to a pool of processes; timed from when all are ready until the last one ends."""
    steps, requested = feed.config.train.steps, time.perf_counter()
    with (
        ProcessPoolExecutor(cores, SPAWN, join, (SPAWN.Barrier(cores),)) as pool,
        PeakMemory(_children) as peak,
    ):
        running = [pool.submit(work, feed, range(core, steps, cores)) for core in range(cores)]
        shares = [future.result() for future in running]
    seconds = max(s.ended for s in shares) - min(s.started for s in shares)
    return Measured(
        images_per_s=steps * feed.config.train.global_batch / seconds,
        from_request=None,
        first_batch_s=min(s.first_done for s in shares) - requested if first_batch else None,
        data_wait=None,
        peak_bytes=peak.bytes,
        steps=tuple(sorted(step for s in shares for step in s.steps)),
    )


def data_loader(feed: Feed, cores: int, pace_s: float) -> Measured:
    """A torch DataLoader whose items are whole steps, read by a consumer that takes `pace_s` seconds for each.

    Its first batch includes the start of its processes.
    """
    steps: Any = Steps(feed)  # torch wants a subclass of its Dataset, which would import torch into every pool
    loader = torch.utils.data.DataLoader(
        steps, batch_size=None, num_workers=cores, prefetch_factor=4, multiprocessing_context=SPAWN
    )
    return _taken((int(step) for step, _, _ in loader), feed.config.train.global_batch, pace_s)


def ray_data(feed: Feed, cores: int, pace_s: float) -> Measured:
    """Ray Data on the cluster of `cores` CPUs, read by this process as a training worker does (`pipeline.training.train`)."""

    def batches() -> Iterator[int]:
        data = training_data(feed)
        data.context.execution_options = ordered_execution()
        for batch in training_batches(data, feed, rank=0):
            yield batch.step

    return _taken(batches(), feed.config.train.global_batch, pace_s)


def _taken(batches: Iterator[int], global_batch: int, pace_s: float) -> Measured:
    """Takes all batches, given by their step, and spends `pace_s` seconds on each."""
    begun = requested = time.perf_counter()
    steps: list[int] = []
    arrived: list[float] = []
    waits: list[float] = []
    for step in batches:
        steps.append(step)
        arrived.append(time.perf_counter())
        waits.append(arrived[-1] - requested)
        time.sleep(pace_s)
        requested = time.perf_counter()
    settled = len(steps) // 4
    return Measured(
        images_per_s=steady_rate(arrived) * global_batch,
        from_request=len(steps) * global_batch / (arrived[-1] - begun),
        first_batch_s=arrived[0] - begun,
        data_wait=sum(waits[settled + 1 :]) / (arrived[-1] - arrived[settled]),
        peak_bytes=None,
        steps=tuple(steps),
    )


def steady_rate(arrived: Sequence[float]) -> float:
    """Batches a second between one and three quarters of the batches, from their arrival times in seconds.

    The slope of a line, because batches come in bursts: tasks that start together end together. The last quarter arrives while
    no new task starts, so it would count work from before.
    """
    settled, drained = len(arrived) // 4, 3 * len(arrived) // 4
    slope, _ = statistics.linear_regression(arrived[settled:drained], range(settled, drained))
    return slope


def _own() -> list[int]:
    return [os.getpid(), *_children()]


def _children() -> list[int]:
    """Processes of pools and loaders, without Ray's."""
    return [child.pid for child in multiprocessing.active_children() if child.pid]
