"""Measures decode, feed and training step of an image on this machine, in turns in one run."""

import logging
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import ray

from pipeline import own_cores
from pipeline.benchmark.datasets import Target, find_targets, repeated
from pipeline.benchmark.feeds import Length, Measured, first_steps, one_round, ray_data
from pipeline.benchmark.network import training_steps
from pipeline.benchmark.processes import SPAWN
from pipeline.benchmark.workload import Opening, open_feed
from pipeline.cluster import connect
from pipeline.config.config import Config
from pipeline.images.augment import Recipe, apply, augment, draw
from pipeline.images.codec import UInt8
from pipeline.images.resize import resize_label_to, resize_to
from pipeline.loading.feed import Feed, Int64, decode
from pipeline.loading.samples import open_samples

logger = logging.getLogger(__name__)

NUM_ROWS = (1_000, 100_000)
ROWS_ROUNDS, ROWS_STEPS = 5, 40
AUGMENTED = 48
"""Number of images in a round of the augment path, in one process."""
STEPS = 4
"""Training steps of a round."""
KEPT_WORKERS = "RAY_num_workers_soft_limit"
WHOLE, CROP = "augment: whole, then crop", "augment: the crop alone"


class Figure(NamedTuple):
    """One stage: images per second as median and spread of the rounds, and its other measurements."""

    data: str
    store: str
    stage: str
    median: float
    lowest: float
    highest: float
    rounds: int
    cpus: int
    cores: int
    """Number of processes of the stage."""
    ratios: dict[str, float]
    """Name of another stage -> this stage divided by that one; medians over the rounds."""
    from_request: float | None = None
    """Images per second including the start, for stages whose rate excludes it."""
    first_batch_s: float | None = None
    first_batch_cold_s: float | None = None
    """Seconds to the first batch on a cluster whose workers have not run a task yet."""
    data_wait: float | None = None
    """Share of the time that a consumer at 0.8 of the bare loop's rate waits for data."""
    peak_mib: float | None = None


def measure_images(config: Config) -> Iterator[list[Figure]]:
    """Figures of each data set on each store: the feed's stages, the augment path, the number of rows.

    The stages of a round run one after the other. Ray Data's workers are started before the first round.
    """
    cores = config.benchmark.cores or own_cores()
    _connect(config, cores)  # preparing uses this cluster too
    targets = list(find_targets(config))
    for number, target in enumerate(targets):
        first_of_data = target.name not in [t.name for t in targets[:number]]
        first_of_store = target.config.storage.path not in [t.config.storage.path for t in targets[:number]]
        # A new cluster has cold workers and an empty object store, whatever ran before.
        ray.shutdown()
        _connect(config, cores)
        yield [
            *measure_feed(target, cores),
            *(measure_augment(target) if first_of_data else []),
            *(measure_rows(target) if first_of_store else []),
        ]
    ray.shutdown()


def _connect(config: Config, cores: int) -> None:
    # After a second Ray ends idle workers beyond one for each CPU. Each round would start them again; training starts them once.
    os.environ[KEPT_WORKERS] = str(math.ceil(cores / config.data.cpus_per_task))
    try:
        connect.join(num_cpus=cores)
    finally:
        del os.environ[KEPT_WORKERS]


def measure_feed(target: Target, cores: int) -> list[Figure]:
    """Figures of the feed's stages, and of the training step if it is configured."""
    config, feed = target.config, Feed(target.config, target.manifest, 0, workers=1)
    length = Length.of(target.images, config.train.global_batch, cores)
    # As long as a round, so that every worker of the cluster has started; the other stages warm up by themselves.
    cold = ray_data(first_steps(feed, length.flat), cores, 0.0).first_batch_s
    logger.info("%s on %s: warmed up", target.name, config.storage.path)
    rounds = []
    for turn in range(config.benchmark.rounds):
        rounds.append(one_round(feed, length, cores))
        if config.benchmark.step:
            rounds[-1]["training step"] = _training_step(target)
        found = "  ".join(f"{stage} {m.images_per_s:.1f}" for stage, m in rounds[-1].items())
        logger.info(
            "%s on %s: round %d of %d, images/s: %s", target.name, config.storage.path, turn + 1, config.benchmark.rounds, found
        )
    rates = {stage: [r[stage].images_per_s for r in rounds] for stage in rounds[0]}
    return [
        _figure(target, stage, rates, ("bare loop", "torch DataLoader"), cores)._replace(
            from_request=_median([r[stage].from_request for r in rounds]),
            first_batch_s=_median([r[stage].first_batch_s for r in rounds]),
            first_batch_cold_s=cold if stage == "Ray Data" else None,
            data_wait=_median([r[stage].data_wait for r in rounds]),
            peak_mib=_mib(max(r[stage].peak_bytes or 0 for r in rounds)),
        )
        for stage in rates
    ]


def _training_step(target: Target) -> Measured:
    # In a separate process: memory that torch allocates would stay in this one and count as the feed's.
    with ProcessPoolExecutor(1, SPAWN) as pool:
        rate = pool.submit(training_steps, target.config, len(target.manifest.class_names), STEPS).result()
    return Measured(rate, None, None, None, None, ())


def measure_augment(target: Target) -> list[Figure]:
    """The augment path compared with [resize whole, crop] in this process: same draws, scales above 1, without decoding.

    There are no figures if the images are no larger than the crop, or are resized to a given side.
    """
    config, split = target.config, target.manifest.splits["train"]
    high, crop = config.data.scale[1], config.data.crop_size
    if config.data.short_sides or high <= 1 or split.smallest[0] <= crop[0] or split.smallest[1] <= crop[1]:
        return []
    feed = Feed(config, target.manifest, 0, workers=1)
    recipe = feed.recipe._replace(scale=(min(1 + 1 / 32, high), high), scale_step=None)
    rates: dict[str, list[float]] = {WHOLE: [], CROP: []}
    for turn in range(config.benchmark.rounds + 1):
        seconds = _augment_seconds(feed, recipe, np.arange(AUGMENTED))
        logger.info("%s: augment path, round %d of %d", target.name, turn, config.benchmark.rounds)
        if turn:
            for stage, spent in seconds.items():
                rates[stage].append(AUGMENTED / spent)
    return [_figure(target, WHOLE, rates, (), 1), _figure(target, CROP, rates, (WHOLE,), 1)]


def _augment_seconds(feed: Feed, recipe: Recipe, positions: Int64) -> dict[str, float]:
    """Seconds of both ways over the same draws; each image goes both ways in turn."""
    samples, label_map, seed = open_samples(feed.config, feed.manifest, "train"), feed.manifest.label_lookup(), feed.config.seed
    picks = feed.sampler.picks(positions)
    numbers = feed.samples_of(picks, samples).tolist()
    seconds = dict.fromkeys((WHOLE, CROP), 0.0)
    for number, row, epoch in zip(numbers, samples.read(numbers), picks.epoch.tolist(), strict=True):
        image, label = decode(row)
        for stage, run in ((WHOLE, whole_then_crop), (CROP, augment)):
            start = time.perf_counter()
            run(image, label, label_map, recipe, seed=seed, epoch=epoch, sample=number)
            seconds[stage] += time.perf_counter() - start
    return seconds


def whole_then_crop(
    image: UInt8,
    label: UInt8,
    label_map: UInt8,
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    sample: int,
) -> tuple[UInt8, UInt8]:
    """Does what `pipeline.images.augment.augment` does in the usual way: resizes the whole image and label, then crops.

    Uses INTER_LINEAR, which is faster than augment's INTER_LINEAR_EXACT and differs from it by one grey level at most.
    """
    drawn = draw(label, label_map, recipe, seed=seed, epoch=epoch, sample=sample)
    resized = resize_to(image, drawn.size), resize_label_to(label, drawn.size)
    return apply(*resized, label_map, drawn._replace(factor=None))


def measure_rows(target: Target) -> list[Figure]:
    """The feed over 1,000 and over 100,000 rows of the same few objects, each in a fresh process: memory and first batch."""
    config = target.config
    unweighted = config.data.model_copy(update={"oversample": {}})  # the index below lists no members of classes
    config = config.model_copy(update={"data": unweighted})
    feeds = {num_rows: Feed(config, repeated(target, num_rows), 0, workers=1) for num_rows in NUM_ROWS}
    found: dict[int, list[Opening]] = {num_rows: [] for num_rows in feeds}
    for turn in range(ROWS_ROUNDS):
        for num_rows, feed in feeds.items():
            with ProcessPoolExecutor(1, SPAWN) as pool:
                found[num_rows].append(pool.submit(open_feed, feed, ROWS_STEPS).result())
        logger.info("%s on %s: number of rows, round %d of %d", target.name, config.storage.path, turn + 1, ROWS_ROUNDS)
    stages = [f"{num_rows:,} rows" for num_rows in NUM_ROWS]
    rates = {stage: [o.images_per_s for o in openings] for stage, openings in zip(stages, found.values(), strict=True)}
    peaks = {stage: [o.peak_bytes for o in openings] for stage, openings in zip(stages, found.values(), strict=True)}
    firsts = {stage: [o.first_batch_s for o in openings] for stage, openings in zip(stages, found.values(), strict=True)}
    few, many = (
        _figure(target, stage, rates, (), 1)._replace(first_batch_s=_median(firsts[stage]), peak_mib=_mib(_median(peaks[stage])))
        for stage in stages
    )
    ratios = {
        f"memory of {stages[0]}": _ratio(peaks[stages[1]], peaks[stages[0]]),
        f"first batch of {stages[0]}": _ratio(firsts[stages[1]], firsts[stages[0]]),
    }
    return [few, many._replace(ratios=ratios)]


def _figure(target: Target, stage: str, rates: Mapping[str, list[float]], others: tuple[str, ...], cores: int) -> Figure:
    mine = rates[stage]
    return Figure(
        target.name, target.config.storage.path, stage, statistics.median(mine), min(mine), max(mine), len(mine),
        own_cores(), cores, {other: _ratio(mine, rates[other]) for other in others},
    )  # fmt: skip


def _ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """Median over the rounds of `mine` divided by `other` in the same round."""
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mib(size: float | None) -> float | None:
    return size / 2**20 if size else None
