"""Successive halving: which trial trains next, and how far. Pure functions of the trials' records.

A trial trains in stages, from one rung to the next. At a rung it saves, ends and frees its place; the better ones resume from
their checkpoints. A rung waits for all trials that may reach it (successive halving, Jamieson and Talwalkar 2016), so the result
depends on no timing; or it lets the best of those that have arrived resume where a place would be idle (ASHA, Li et al. 2020,
algorithm 2).
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.config.config import Config
from pipeline.tuning.journal import Trial

CONFIRMED = 2
"""Number of best points that are trained with other seeds."""


class Plan(NamedTuple):
    """What a search may train."""

    trials: int
    """Number of points."""
    rungs: tuple[int, ...]
    """Steps at which trials are compared, ascending, the last one below `steps`."""
    steps: int
    """Last step of a complete trial."""
    reduction: int
    """One of this many trials passes a rung."""
    waits: bool
    """A rung waits for all trials that may reach it."""
    seeds: int = 1
    """Seeds with which each of the best points is trained."""


class Stage(NamedTuple):
    """Train this trial from where it is to the step `until`."""

    name: str
    until: int


def rungs(config: Config) -> tuple[int, ...]:
    """The first validations at or after `tune.grace_steps` x `tune.reduction`^k, below the last step.

    A rung at the last step would compare trials that have nothing left to train.
    """
    found, step, every = [], config.tune.grace_steps, config.train.validate_every
    while (validated := -(-step // every) * every) < config.train.steps:
        if validated not in found:
            found.append(validated)
        step *= config.tune.reduction
    return tuple(found)


def survivors(scores: dict[str, float | None], reduction: int) -> list[str]:
    """The best 1 / `reduction` of the trials with these scores, rounded up, best first.

    The earlier name wins a tie; a score that is not a number survives nothing.
    """
    ranked = sorted((name for name, score in scores.items() if score is not None), key=lambda name: (-(scores[name] or 0), name))
    return ranked[: -(-len(scores) // reduction)]


def next_stage(trials: Sequence[Trial], live: Collection[str], plan: Plan) -> Stage | None:
    """What to train now, `live` being the trials that train; None if nothing is left, or if it depends on the live ones.

    Stages that were interrupted come first, then new points in the order of their numbers, then the trials that pass a rung,
    then the best points with other seeds.
    """
    for trial in trials:
        if trial.state == "running" and trial.name not in live:
            return Stage(trial.name, trial.until)
    points = [trial for trial in trials if not trial.confirms]
    first = plan.rungs[0] if plan.rungs else plan.steps
    if len(points) < plan.trials:
        return Stage(f"{len(points):04d}", first)
    for rung, after in reversed([*pairwise((*plan.rungs, plan.steps))]):
        for name in passed(points, rung, plan):
            trial = next(trial for trial in points if trial.name == name)
            if trial.until == rung and name not in live and trial.state in ("paused", "stopped"):
                return Stage(name, after)
    if any(trial.name in live for trial in points):
        return None
    done = {trial.name for trial in trials}
    for best in to_confirm(points, plan):
        for number in range(1, plan.seeds):
            if (name := f"{best.name}-seed{number}") not in done:
                return Stage(name, plan.steps)
    return None


def passed(points: Sequence[Trial], rung: int, plan: Plan) -> list[str]:
    """The trials that continue after a rung, best first; none while the rung waits for others."""
    return [] if plan.waits and not whole(points, rung, plan) else survivors(scores_at(points, rung), plan.reduction)


def scores_at(points: Sequence[Trial], rung: int) -> dict[str, float | None]:
    """The scores of all trials that have reached a rung and did not fail."""
    return {trial.name: trial.at(rung) for trial in points if trial.reached(rung) and trial.state != "failed"}


def whole(points: Sequence[Trial], rung: int, plan: Plan) -> bool:
    """Whether every trial that may reach the rung has reached it."""
    earlier = [below for below in plan.rungs if below < rung]
    if len(points) < plan.trials or (earlier and not whole(points, earlier[-1], plan)):
        return False
    coming = survivors(scores_at(points, earlier[-1]), plan.reduction) if earlier else [trial.name for trial in points]
    return all(
        trial.reached(rung) or ended(trial)
        for trial in points
        if trial.name in coming or (trial.state == "running" and trial.until >= rung)
    )


def ended(trial: Trial) -> bool:
    """Whether the trial ends before a rung that it has not reached: it failed, cannot train, or a limit of `stop` ended it."""
    return trial.state in ("failed", "refused", "complete")


def left_behind(trials: Sequence[Trial], plan: Plan) -> list[Trial]:
    """The paused trials that others have passed for good, as stopped ones with the reason."""
    points, found = [trial for trial in trials if not trial.confirms], []
    for trial in points:
        if trial.state != "paused" or not whole(points, trial.until, plan):
            continue
        scores = scores_at(points, trial.until)
        best = survivors(scores, plan.reduction)
        if trial.name not in best:
            score = scores[trial.name]
            shown = "not a number" if score is None else f"{score:.4f}"
            reason = f"mIoU {shown} at step {trial.until}: not among the best {len(best)} of {len(scores)}"
            found.append(trial._replace(state="stopped", reason=reason))
    return found


def to_confirm(points: Sequence[Trial], plan: Plan) -> list[Trial]:
    """The best complete points, best first, which are trained with other seeds."""
    done = [trial for trial in points if trial.state == "complete" and trial.miou is not None]
    return sorted(done, key=lambda trial: trial.order)[: CONFIRMED if plan.seeds > 1 else 0]
