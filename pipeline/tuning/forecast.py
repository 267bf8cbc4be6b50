"""How long a search takes and whether its trials fit into memory: said before the first one, corrected while the search runs.

Some steps of the configuration itself are measured where trials will run, in as many processes at a time as trials will share a
node. Another point takes as much longer as its step has more operations (`step_cost`), and what the trials have taken so far
corrects the rest.
"""

import logging
import math
import statistics
import time
from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import psutil
import ray
import torch

from pipeline.evaluation.evaluate import evaluate_samples
from pipeline.fault_tolerance.failures import root_cause
from pipeline.formatting import size
from pipeline.loading.batches import evaluation_samples
from pipeline.loading.feed import Feed
from pipeline.model.cost import StepCost, step_cost
from pipeline.model.learner import Learner
from pipeline.preflight.space_checks import some_points
from pipeline.training.run import Run
from pipeline.tuning.journal import Trial
from pipeline.tuning.rungs import CONFIRMED, Plan
from pipeline.tuning.trials import trial_config

logger = logging.getLogger(__name__)

STEPS, LONGEST_S = (2, 8), 5.0
"""Measured steps, at least and at most, after one that is not; after the longest time only the least."""
IMAGES = 2
"""Measured images of a validation."""
START_S = {True: 3.0, False: 30.0}
"""Seconds from the end of a stage to the first step of the next one, in a process that is kept (True) or with new workers."""
WAIT_S = 30.0
"""Longest wait for CPUs and GPUs on which to measure."""
SAMPLED = 8
"""Random points of the space that stand for those that are not drawn yet, in turns."""


class Speed(NamedTuple):
    """What was measured where trials run, with the configuration itself."""

    step_s: float
    """Seconds of a step of one worker; where a trial trains in its own process, with the making of its batch."""
    image_s: float
    """Seconds of a validation for each image."""
    memory_bytes: int
    """Memory of a trial's device: of its GPU, or its part of the memory that the node has left."""


class Forecast:
    """Predicts the time and the memory of a search's trials."""

    def __init__(self, run: Run, speed: Speed, in_process: bool, places: int) -> None:
        """`run`: the search's, `places`: number of trials at a time."""
        self.run, self.speed, self.in_process, self.places = run, speed, in_process, places
        self.costs: dict[str, StepCost] = {}

    def cost(self, overrides: dict[str, Any], images: int | None = None) -> StepCost:
        """The cost of a step of one worker at a point; `images`: number in a pass, by default that of the configuration."""
        config = trial_config(self.run.config, overrides)
        workers = config.train.fewest_workers
        images = images or config.train.micro_batch or math.ceil(config.train.global_batch / workers)
        train, kept = config.train, (config.train.momentum > 0, config.train.ema_decay is not None)
        # All that a count depends on: of the searched settings, most change none of it.
        key = repr((config.model, config.loss, config.data.crop_size, train.precision, train.freeze_norm, kept, images))
        if key not in self.costs:
            self.costs[key] = step_cost(config, len(self.run.manifest.class_names), images)
        return self.costs[key]

    def gflop(self, overrides: dict[str, Any]) -> float:
        """1e9 operations of one training image at a point."""
        return self.cost(overrides, images=1).flops / 1e9

    def step_s(self, overrides: dict[str, Any]) -> float:
        """Seconds of a step at a point."""
        return self.speed.step_s * self.cost(overrides).flops / self.cost({}).flops

    def stage_s(self, overrides: dict[str, Any], start: int, end: int) -> float:
        """Seconds of a stage, with its start and its validations."""
        validations = -(-end // self.run.config.train.validate_every) - start // self.run.config.train.validate_every
        of_validations = validations * self.run.manifest.num_images("val") * self.speed.image_s
        return START_S[self.in_process] + (end - start) * self.step_s(overrides) + of_validations

    def spent_s(self, trials: Sequence[Trial], plan: Plan) -> float:
        """Predicted seconds of what the trials have trained so far."""
        ends = (*plan.rungs, plan.steps)
        total = 0.0
        for trial in trials:
            cuts = [0, *(end for end in ends if end < trial.step), trial.step] if trial.step else []
            total += sum(self.stage_s(trial.overrides, start, end) for start, end in pairwise(cuts))
        return total

    def left_s(self, trials: Sequence[Trial], plan: Plan) -> float:
        """Predicted seconds until the search ends, corrected by what its trials have taken so far."""
        points = [trial for trial in trials if not trial.confirms]
        stages = [(trial.overrides, trial.step, trial.until) for trial in trials if trial.state == "running"]
        for start, end, number in self._passing(points, plan):
            # Those that will pass a rung are like the best of those that have not passed it.
            before = [trial for trial in points if trial.reports and trial.until <= start]
            best = [trial.overrides for trial in sorted(before, key=lambda trial: trial.order)]
            stages += [(overrides, start, end) for overrides in [*best, *self._sample(number)][:number]]
        seeds = CONFIRMED * (plan.seeds - 1) - sum(bool(trial.confirms) for trial in trials)
        stages += [({}, 0, plan.steps)] * max(0, seeds)
        seconds = sum(self.stage_s(*stage) for stage in stages if stage[2] > stage[1])
        done = [trial for trial in trials if trial.state != "running" and trial.step]
        predicted = self.spent_s(done, plan)
        return seconds * (sum(trial.seconds for trial in done) / predicted if predicted else 1.0) / self.places

    def _passing(self, points: Sequence[Trial], plan: Plan) -> list[tuple[int, int, int]]:
        """(from, to, number) of the stages of points that have not begun: the new ones, then those that will pass each rung."""
        ends, coming = (*plan.rungs, plan.steps), plan.trials
        found = [(0, ends[0], plan.trials - len(points))]
        for start, end in pairwise(ends):
            coming = -(-coming // plan.reduction)
            found.append((start, end, coming - sum(trial.until > start for trial in points)))
        return [(start, end, number) for start, end, number in found if number > 0]

    def _sample(self, number: int) -> list[dict[str, Any]]:
        """Points that stand for `number` that are not drawn yet."""
        drawn = [*some_points(self.run.config)][-SAMPLED:]  # the last ones are random
        return [point for point, _ in zip(cycle(drawn), range(number), strict=False)]

    def refusal(self, overrides: dict[str, Any]) -> str:
        """Why a point cannot train on this device, not even image by image; empty if it can."""
        has, least = self.speed.memory_bytes, self.cost(overrides, images=1).peak_bytes
        return f"a step with one image a pass needs {size(least)}, and {size(has)} are there" if least > has else ""


def measure(run: Run, in_process: bool, on_node: int) -> Speed:
    """Runs a few steps and validates a few images of the configuration itself, without a trace.

    `on_node`: number of trials that share the memory of a node.
    """
    config = trial_config(run.config, {})
    torch.set_num_threads(config.train.threads or 1)
    device = torch.device("cuda" if run.on_gpus else "cpu")
    workers = config.train.fewest_workers
    feed, learner = Feed(config, run.manifest, 0, workers), Learner(config, len(run.manifest.class_names), device)
    stepped: list[float] = []
    while len(stepped) <= STEPS[0] or (len(stepped) <= STEPS[1] and sum(stepped) < LONGEST_S):
        step, began = len(stepped), time.monotonic()
        rows = feed.steps(step, step + 1, rank=0)
        if not in_process:
            began = time.monotonic()
        count = math.ceil(config.train.global_batch / workers)
        image, label = (torch.from_numpy(rows[name][:count]) for name in ("image", "label"))
        result = learner.step(image.permute(0, 3, 1, 2), label, step=step, learning_rate=0.0, rows=(0, count))
        bool(result.applied)  # waits for the device
        stepped.append(time.monotonic() - began)
    numbers = [number % run.manifest.num_images("val") for number in range(IMAGES + 1)]
    seen = []
    for sample in evaluation_samples(config, run.manifest, "val", numbers, config.evaluate.scale):
        began = time.monotonic()
        evaluate_samples(learner.net, [sample], len(run.manifest.class_names), device)
        seen.append(time.monotonic() - began)
    if run.on_gpus:
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
    else:
        memory_bytes = psutil.virtual_memory().available // on_node
    return Speed(statistics.median(stepped[1:]), statistics.median(seen[1:]), memory_bytes)


def measured(run: Run, cpus: float, in_process: bool, on_node: int) -> Speed | None:
    """The slowest `measure` of as many at the same time as trials share a node, because they slow each other down.

    None if the cluster has no room now, or if it fails.
    """
    task: Any = ray.remote(num_cpus=cpus, num_gpus=int(run.on_gpus), max_retries=0, scheduling_strategy="DEFAULT")
    started = [task(measure).remote(run._replace(stop_flag=None), in_process, on_node) for _ in range(on_node)]
    done, waiting = ray.wait(started, num_returns=on_node, timeout=WAIT_S)
    for each in waiting:
        ray.cancel(each, force=True)
    reason = f"the cluster had no room within {WAIT_S:g} s"
    try:
        if done:
            slowest: Speed = max(ray.get(done))
            return slowest
    except ray.exceptions.RayError as error:
        reason = str(root_cause(error)).splitlines()[0]
    logger.info("no forecast of time and memory: %s", reason)
    return None
