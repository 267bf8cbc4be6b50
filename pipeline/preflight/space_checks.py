"""Checks of a search space before its first trial: which settings may be searched, and whether training accepts its points."""

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.config.run_key import shapes
from pipeline.errors import ConfigError
from pipeline.preflight.findings import Finding

SHARED = ("data.name", "data.layout", "data.classes", "data.generated", "train.steps")
"""Settings that shape a model and that all trials of a search share: the data set, and the steps at which they are compared."""
MOST_CORNERS, DRAWS = 256, 64
"""Points that are tried: combinations of listed values and of the ends of ranges, and points drawn at random."""
EXAMINED = 32
"""Of these points, those that go through all checks of a run; the others are validated as configurations."""

Point = dict[str, Any]


def examine(config: Config, checks: Callable[[Config], list[Finding]]) -> list[Finding]:
    """Every error of the search space; none if there is no space. `checks`: the findings of a run with one configuration."""
    return settings(config) + rungs(config) or points(config, checks)


def settings(config: Config) -> list[Finding]:
    """Settings that do not shape a trial's model, or that all trials share."""
    found = []
    for key in config.tune.space:
        if not shapes(key):
            what = f"tune.space.{key}: does not shape the model that a trial trains, so all its values are the same trial"
            found.append(Finding("error", what, f"set {key} outside of tune.space"))
        elif any(key == shared or key.startswith(f"{shared}.") for shared in SHARED):
            found.append(Finding("error", f"tune.space.{key}: is the same for all trials of a search", "a search for each value"))
    return found


def rungs(config: Config) -> list[Finding]:
    """Trials that cannot be compared before they end."""
    grace, steps = config.tune.grace_steps, config.train.steps
    if not config.tune.space or grace <= steps:
        return []
    what = f"tune.grace_steps = {grace}: above train.steps = {steps}"
    return [Finding("error", what, f"tune.grace_steps={max(1, steps // 3)}, or {steps}, with which no trial is stopped early")]


def points(config: Config, checks: Callable[[Config], list[Finding]]) -> list[Finding]:
    """Points of the space that training would refuse, one finding for each setting that is to blame.

    Each value has passed alone; here combinations are tried.
    """
    base = override(config, {"tune.space": {}})
    known = {finding.what for finding in checks(base)}
    refused: dict[str, list[tuple[Point, str]]] = {}
    number = 0
    for number, point in enumerate(some_points(config), start=1):
        try:
            made = override(base, point)
            found = [finding for finding in checks(made) if finding.level == "error"] if number <= EXAMINED else []
            mistakes = [f"{finding.what} ({finding.fix})" for finding in found if finding.what not in known]
        except ConfigError as error:
            mistakes = error.mistakes
        for mistake in mistakes:
            refused.setdefault(mistake.split()[0], []).append((point, mistake))
    return [
        Finding(
            "error",
            f"tune.space: {len(cases)} of {number} points tried are refused, such as {named(cases[0][0])}: {cases[0][1]}",
            "take values that fit each other",
        )
        for cases in refused.values()
    ]


def some_points(config: Config) -> Iterator[Point]:
    """Combinations of the values and ends of all dimensions, then random points; the same ones for the same seed."""
    space, generator = config.tune.space, random.Random(config.seed)
    if not space:
        return
    ends = [dimension.ends() for dimension in space.values()]
    if math.prod(map(len, ends)) <= MOST_CORNERS:
        corners: Iterator[tuple[Any, ...]] = product(*ends)
    else:
        corners = islice(iter(lambda: tuple(generator.choice(values) for values in ends), None), MOST_CORNERS)
    for values in corners:
        yield config.tune.applicable(dict(zip(space, values, strict=True)))
    for _ in range(DRAWS):
        yield config.tune.applicable({key: dimension.draw(generator) for key, dimension in space.items()})


def named(point: Point) -> str:
    """The point as overrides of a command line."""
    return " ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in point.items())
