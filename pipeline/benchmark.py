"""Where an image's time goes on this machine: decode, feed and training step, interleaved in one run."""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config import Config
from pipeline.datasets import Feed, decode, open_data
from pipeline.learner import Learner
from pipeline.shards import Row, ShardReader

ROUNDS = 5


class Figure(NamedTuple):
    """Images per second of one stage in one process: the median of the rounds, and their spread."""

    stage: str
    images_per_s: float
    lowest: float
    highest: float

    def json(self) -> str:
        """One line, with what the number depends on."""
        return json.dumps(self._asdict() | {"rounds": ROUNDS, "cpus": len(os.sched_getaffinity(0))})


def benchmark(config: Config) -> list[Figure]:
    """Measures each stage in turn, `ROUNDS` times; the first round warms up and does not count."""
    store, manifest = open_data(config)
    feed = Feed(config, store, manifest, 0)
    num_images = min(4 * config.train.global_batch, manifest.num_images("train"))
    rows = ShardReader(store, manifest, "train").read(list(range(num_images)))
    stages: dict[str, Callable[[], int]] = {
        "decode": lambda: _decode(rows),
        "feed (fetch, decode, augment)": lambda: len(feed.crops(*feed.plan.samples(np.arange(num_images)))[0]),
        "training step": _training_step(config, len(manifest.class_names)),
    }
    rates: dict[str, list[float]] = {stage: [] for stage in stages}
    for turn in range(ROUNDS + 1):
        for stage, run in stages.items():
            start = time.perf_counter()
            images = run()
            if turn:
                rates[stage].append(images / (time.perf_counter() - start))
    return [Figure(stage, statistics.median(r), min(r), max(r)) for stage, r in rates.items()]


def _decode(rows: list[Row]) -> int:
    for row in rows:
        decode(row.sample_id, row.image, row.label)
    return len(rows)


def _training_step(config: Config, num_classes: int) -> Callable[[], int]:
    """One step of the configured model on random pixels, on all cores or the GPU; returns its number of images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = Learner(config, num_classes, device)
    batch, (height, width) = config.train.global_batch, config.data.crop
    image = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    label = torch.randint(0, num_classes, (batch, height, width), dtype=torch.uint8, device=device)

    def step() -> int:
        float(learner.step(image, label, step=0, learning_rate=1e-3)["loss"])
        return batch

    return step
