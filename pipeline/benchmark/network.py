"""The training step of the whole network beside the published recipe's: float32, rows of pixels, its criss-cross attention."""

import json
import logging
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.benchmark.feeds import SPAWN
from pipeline.benchmark.formulations import PublishedCrissCross
from pipeline.benchmark.memory import own_peak
from pipeline.config import Config
from pipeline.learner import Learner

logger = logging.getLogger(__name__)

NUM_CLASSES = 19
PUBLISHED, OURS = "published recipe", "ours"
MATRIX = 4096
"""Side of the product of two square matrices that stands for what the device can do."""


class Turn(NamedTuple):
    """Steps of one recipe in a process of its own."""

    seconds: list[float]
    losses: list[float]
    peak_mib: float
    """Of the steps: on a GPU what was allocated, else the process's growth since the network was made."""
    gflop: float
    """Products of one step, 2 for a multiplication and its addition."""
    peak_gflops: float
    """Measured: products of large matrices a second, in the recipe's precision."""


class NetworkFigure(NamedTuple):
    """The training step of one recipe; medians of the rounds."""

    recipe: str
    backbone: str
    crop: tuple[int, int]
    recurrence: int
    batch: int
    precision: str
    compiled: bool
    device: str
    rounds: int
    images_per_s: float
    lowest: float
    highest: float
    speedup: float
    """Over the published recipe in the same round, median."""
    peak_mib: float
    gflop: float
    share_of_peak: float
    """Counted products over the time, as a share of the measured rate of large products in the same precision."""
    loss_difference: float
    """Largest of all steps, relative to the published recipe's loss."""

    def json(self) -> str:
        """One line."""
        return json.dumps({key: round(v, 5) if isinstance(v, float) else v for key, v in self._asdict().items()})


def measure_network(config: Config) -> Iterator[list[NetworkFigure]]:
    """Both recipes in every round, on one batch, each in a process of its own."""
    train = config.train.model_copy(update={"precision": "float32", "compile": False})
    recipes = {PUBLISHED: config.model_copy(update={"train": train}), OURS: config}
    turns: dict[str, list[Turn]] = {name: [] for name in recipes}
    for number in range(config.benchmark.rounds):
        for name, recipe in recipes.items():
            with ProcessPoolExecutor(1, SPAWN) as pool:
                turns[name].append(pool.submit(run_steps, recipe, published=name == PUBLISHED).result())
        said = "  ".join(f"{name} {_median_step(mine[-1]):.3f}" for name, mine in turns.items())
        logger.info("round %d of %d, s a step: %s", number + 1, config.benchmark.rounds, said)
    yield [_figure(name, recipes[name], turns) for name in recipes]


def run_steps(config: Config, *, published: bool) -> Turn:
    """The configured steps on one drawn batch, after two that warm up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = Learner(config, NUM_CLASSES, device)
    if published:
        learner.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        learner.net.head.attention.__class__ = PublishedCrissCross  # the parameters stay, and the optimizer's hold on them
    learner.distribute()
    batch, (height, width) = config.train.global_batch, config.data.crop
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    label = torch.from_numpy(random.integers(0, NUM_CLASSES, (batch, height, width), dtype=np.uint8))
    if published:
        image = image.contiguous()
    before, seconds, losses, gflop = own_peak(), [], [], 0.0
    for step in range(2 + config.benchmark.steps):
        if step == 1:  # the first one allocates
            with FlopCounterMode(display=False) as counter:
                learner.step(image, label, step=step, learning_rate=1e-3)
            gflop = counter.get_total_flops() / 1e9
            continue
        start = time.perf_counter()
        losses.append(float(learner.step(image, label, step=step, learning_rate=1e-3).losses["loss"]))  # waits for the device
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else own_peak() - before
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return Turn(seconds[1:], losses, peak / 2**20, gflop, peak_gflops(dtype, device))


def peak_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """Products of large square matrices, best of ten."""
    left, right = (torch.randn(MATRIX, MATRIX, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX**3 / best / 1e9


def _median_step(turn: Turn) -> float:
    return statistics.median(turn.seconds)


def _figure(name: str, config: Config, turns: dict[str, list[Turn]]) -> NetworkFigure:
    mine, published = turns[name], turns[PUBLISHED]
    rates = [config.train.global_batch / _median_step(turn) for turn in mine]
    differences = [abs(a - b) / abs(b) for a, b in zip(mine[0].losses, published[0].losses, strict=True)]
    return NetworkFigure(
        name, config.model.backbone, config.data.crop, config.model.recurrence, config.train.global_batch,
        config.train.precision, config.train.compile, "cuda" if torch.cuda.is_available() else "cpu", len(mine),
        statistics.median(rates), min(rates), max(rates),
        statistics.median(_median_step(theirs) / _median_step(ours) for theirs, ours in zip(published, mine, strict=True)),
        max(turn.peak_mib for turn in mine), mine[0].gflop,
        statistics.median(turn.gflop / _median_step(turn) / turn.peak_gflops for turn in mine), max(differences),
    )  # fmt: skip
