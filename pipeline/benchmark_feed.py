"""The stages of the feed, each over the same steps of the plan and on equally many processes."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch.utils.data

from pipeline.benchmark_memory import PeakMemory, family
from pipeline.benchmark_work import Share, Steps, decode_share, feed_share, join
from pipeline.datasets import data_config, planned_batches, training_data
from pipeline.feed import Feed

SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
STEADY = (0.25, 0.9)
"""Part of the steps over which a feed's steady rate is taken."""
LOAD = 0.8
"""Rate of the paced consumer, as a share of the bare loop's."""


class Measured(NamedTuple):
    """One stage in one round."""

    images_per_s: float
    first_batch_s: float | None
    """From the request for the feed to its first batch."""
    data_wait: float | None
    """Share of the time that a consumer at `LOAD` of the bare loop's rate waits for the next batch."""
    peak_bytes: int | None
    """Of the stage's own processes; none where they are not this machine's."""
    steps: tuple[int, ...]
    """What it went through, ascending."""


class Length(NamedTuple):
    """Steps of a round: `flat` as fast as they come, then `paced` ones to a consumer that takes its time."""

    flat: int
    paced: int

    @classmethod
    def of(cls, images: int, global_batch: int, cores: int) -> "Length":
        """At least so many images, an equal share for each core; a fourth of it paced."""
        share = max(2, -(-images // (global_batch * cores)))
        flat = max(8, share * cores)
        return cls(flat, max(4, flat // 4))


def one_round(feed: Feed, length: Length, cores: int) -> dict[str, Measured]:
    """Each stage once, one after the other; none leaves a process behind, but for Ray's own."""
    batch = feed.config.train.global_batch
    stages = {"decode only": _pool(decode_share, feed, length, cores, first_batch=False)}
    bare = stages["bare loop"] = _pool(feed_share, feed, length, cores, first_batch=True)
    pace_s = batch / (LOAD * bare.images_per_s)
    stages["torch DataLoader"] = data_loader(feed, length, pace_s, cores)
    stages["Ray Data"] = ray_data(feed, length, pace_s)
    return stages


def _pool(work: Callable[[Feed, range], Share], feed: Feed, length: Length, cores: int, *, first_batch: bool) -> Measured:
    """The flat steps dealt out to a pool of processes, timed from the moment when all are ready to the last one's end."""
    asked = time.perf_counter()
    with (
        ProcessPoolExecutor(cores, SPAWN, join, (SPAWN.Barrier(cores),)) as pool,
        PeakMemory(_children) as peak,
    ):
        running = [pool.submit(work, feed, range(core, length.flat, cores)) for core in range(cores)]
        shares = [future.result() for future in running]
    seconds = max(s.ended for s in shares) - min(s.started for s in shares)
    return Measured(
        images_per_s=length.flat * feed.config.train.global_batch / seconds,
        first_batch_s=min(s.first_done for s in shares) - asked if first_batch else None,
        data_wait=None,
        peak_bytes=peak.bytes,
        steps=tuple(sorted(step for s in shares for step in s.steps)),
    )


def data_loader(feed: Feed, length: Length, pace_s: float, cores: int) -> Measured:
    """A torch DataLoader whose items are whole steps; its first batch includes the start of its processes."""
    steps: Any = Steps(feed)  # torch asks for a subclass of its Dataset, which would import torch into every pool
    loader = torch.utils.data.DataLoader(
        steps, batch_size=None, num_workers=cores, prefetch_factor=4, multiprocessing_context=SPAWN
    )
    with PeakMemory(lambda: [os.getpid(), *_children()]) as peak:
        return _consumed(lambda: (int(step) for step, _, _ in loader), feed, length, pace_s)._replace(peak_bytes=peak.bytes)


def ray_data(feed: Feed, length: Length, pace_s: float) -> Measured:
    """Ray Data to this process, as a training worker reads it (`pipeline.train`)."""

    def batches() -> Iterator[int]:
        data = training_data(feed)
        data.context.execution_options = data_config()._resolve_execution_options("train")
        rows = data.iter_batches(batch_size=feed.config.train.global_batch, batch_format="numpy", prefetch_batches=2)
        for batch in planned_batches(iter(rows), feed.plan, steps=feed.config.train.steps, rank=0, workers=1):
            yield batch.step

    with PeakMemory(lambda: family(os.getpid())) as peak:
        measured = _consumed(batches, feed, length, pace_s)
    # A cluster that was joined is no descendant of this process.
    return measured._replace(peak_bytes=None if os.environ.get("RAY_ADDRESS") else peak.bytes)


def _consumed(batches: Callable[[], Iterator[int]], feed: Feed, length: Length, pace_s: float) -> Measured:
    """Takes the flat steps as they come and the paced ones every `pace_s`, whose first wait does not count."""
    asked = time.perf_counter()
    steps: list[int] = []
    arrived: list[float] = []
    waits: list[float] = []
    for step in batches():
        steps.append(step)
        arrived.append(time.perf_counter())
        waits.append(arrived[-1] - asked)
        if len(steps) > length.flat:
            time.sleep(pace_s)
        asked = time.perf_counter()
    first, last = (int(share * length.flat) for share in STEADY)
    paced = slice(length.flat + 1, None)
    return Measured(
        images_per_s=(last - first) * feed.config.train.global_batch / (arrived[last] - arrived[first]),
        first_batch_s=waits[0],
        data_wait=sum(waits[paced]) / (arrived[-1] - arrived[length.flat]),
        peak_bytes=None,
        steps=tuple(steps),
    )


def _children() -> list[int]:
    """Processes of pools and loaders; Ray's are none of them."""
    return [child.pid for child in multiprocessing.active_children() if child.pid]
