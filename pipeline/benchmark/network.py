"""The training step of the whole network compared with the published recipe's: float32, contiguous layout, its attention."""

import logging
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from ccnet.step import DTYPES, StepResult
from pipeline.benchmark.baselines import PublishedCrissCross
from pipeline.benchmark.device import gflop, own_device, peak_gflops, seconds
from pipeline.benchmark.processes import SPAWN, own_peak
from pipeline.config.config import Config
from pipeline.model.learner import Learner

logger = logging.getLogger(__name__)

NUM_CLASSES, WARM_UP = 19, 3
OURS, PUBLISHED = "ours", "published"
SAME_LOSS = 0.02
"""Largest allowed difference between the losses of the two recipes, relative to the published one's."""


class Turn(NamedTuple):
    """Steps of one recipe in a separate process."""

    seconds: float
    """Median of one step."""
    losses: list[float]
    """Losses of all steps from the first."""
    peak_mib: float
    """Memory of the steps: on a GPU the peak allocation, otherwise the growth of the process since the network was made."""
    gflop: float
    """10^9 floating-point operations of one step; a multiplication and its addition count 2."""
    peak_gflops: float
    """10^9 operations a second in products of large matrices, measured in the same process and precision."""


class NetworkFigure(NamedTuple):
    """Figures of one recipe's training step, as medians of the rounds."""

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
    """Published recipe's time divided by this one's in the same round; median."""
    peak_mib: float
    gflop: float
    share_of_peak: float
    """Counted operations a second as a share of `Turn.peak_gflops`."""
    loss_difference: float
    """Largest difference of all steps, relative to the published recipe's loss."""


def measure_network(config: Config) -> Iterator[list[NetworkFigure]]:
    """Figures of both recipes: every round runs each in a separate process, on the same batch."""
    train = config.train.model_copy(update={"precision": "float32", "compile": False})
    recipes = {OURS: config, PUBLISHED: config.model_copy(update={"train": train})}
    turns: dict[str, list[Turn]] = {name: [] for name in recipes}
    for number in range(config.benchmark.rounds):
        for name, recipe in recipes.items():
            with ProcessPoolExecutor(1, SPAWN) as pool:
                turns[name].append(pool.submit(run_steps, recipe, published=name == PUBLISHED).result())
        found = "  ".join(f"{name} {mine[-1].seconds:.3f}" for name, mine in turns.items())
        logger.info("round %d of %d, s a step: %s", number + 1, config.benchmark.rounds, found)
    figures = [_figure(name, recipes[name], turns) for name in recipes]
    yield figures
    assert_same_loss(figures)


def assert_same_loss(figures: list[NetworkFigure]) -> None:
    """Raises AssertionError if the losses of the two recipes differ by more than `SAME_LOSS`."""
    for figure in figures:
        assert figure.loss_difference < SAME_LOSS, (
            f"the loss differs from the published recipe's by {figure.loss_difference:.1%}: at most {SAME_LOSS:.0%}"
        )


def run_steps(config: Config, *, published: bool) -> Turn:
    """Runs the configured number of steps on one random batch, after `WARM_UP` steps."""
    device = own_device()
    learner = Learner(config, NUM_CLASSES, device)
    if published:
        learner.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        learner.net.head.attention.__class__ = PublishedCrissCross  # keeps the parameters, which the optimizer holds
    image, label = drawn_batch(config.train.global_batch, config.data.crop_size)
    if published:
        image = image.contiguous()
    results: list[StepResult] = []

    def step() -> None:
        results.append(learner.step(image, label, step=len(results), learning_rate=1e-3))

    before = own_peak()
    products = gflop(step)  # counted before torch.compile, whose code cannot be counted
    learner.distribute()
    for _ in range(WARM_UP - 1):
        step()
    times = [seconds(step, device) for _ in range(config.benchmark.steps)]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else own_peak() - before
    losses = [float(result.losses["loss"]) for result in results]
    rate = peak_gflops(DTYPES[config.train.precision] or torch.float32, device)
    return Turn(statistics.median(times), losses, peak / 2**20, products, rate)


def drawn_batch(
    num_images: int, crop: tuple[int, int], num_classes: int = NUM_CLASSES, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images uint8[B, 3, H, W], channels last as from the feed, and labels uint8[B, H, W]."""
    random = np.random.default_rng(seed)
    image = torch.from_numpy(random.integers(0, 256, (num_images, *crop, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    return image, torch.from_numpy(random.integers(0, num_classes, (num_images, *crop), dtype=np.uint8))


def _figure(name: str, config: Config, turns: dict[str, list[Turn]]) -> NetworkFigure:
    mine, published, train = turns[name], turns[PUBLISHED], config.train
    rates = [train.global_batch / turn.seconds for turn in mine]
    differences = [abs(ours - theirs) / abs(theirs) for ours, theirs in zip(mine[0].losses, published[0].losses, strict=True)]
    return NetworkFigure(
        name, config.model.backbone, config.data.crop_size, config.model.recurrence, train.global_batch, train.precision,
        train.compile, own_device().type, len(mine), statistics.median(rates), min(rates), max(rates),
        statistics.median(theirs.seconds / ours.seconds for theirs, ours in zip(published, mine, strict=True)),
        max(turn.peak_mib for turn in mine), mine[0].gflop,
        statistics.median(turn.gflop / turn.seconds / turn.peak_gflops for turn in mine), max(differences),
    )  # fmt: skip


def training_steps(config: Config, num_classes: int, num_steps: int) -> float:
    """Images per second of the configured model on random pixels, on all cores or the GPU, after one step that warms up."""
    learner, batch = Learner(config, num_classes, own_device()), config.train.global_batch
    image, label = drawn_batch(batch, config.data.crop_size, num_classes)
    start = 0.0
    for step in range(num_steps + 1):
        float(learner.step(image, label, step=step, learning_rate=1e-3).losses["loss"])  # waits for the device
        start = start or time.perf_counter()
    return num_steps * batch / (time.perf_counter() - start)
