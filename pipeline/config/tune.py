"""Settings of a hyperparameter search."""

import math
import random
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section


class Dimension(Section):
    log: tuple[float, float] | None = None
    """Log-uniform range [low, high]."""
    uniform: tuple[float, float] | None = None
    """Uniform range [low, high]."""
    integer: tuple[int, int] | None = None
    """Whole numbers from low to high, both included."""
    choice: tuple[Any, ...] | None = None
    """Values to choose from at random."""
    grid: tuple[Any, ...] | None = None
    """Values that are all tried, each with all those of the other grids."""
    when: dict[str, tuple[Any, ...]] = Field({})
    """Searched setting -> its values with which this setting matters; with others, a trial keeps the configuration's value."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.log, self.uniform, self.integer, self.choice, self.grid].count(None) != 4:
            raise ValueError(
                "needs exactly one of log: [low, high], uniform: [low, high], integer: [low, high], choice: [a, b, ...] and "
                "grid: [a, b, ...]"
            )
        if self.log and not 0 < self.log[0] < self.log[1]:
            raise ValueError(f"log = {list(self.log)}: needs 0 < low < high")
        for name, ends in {"uniform": self.uniform, "integer": self.integer}.items():
            if ends and not ends[0] < ends[1]:
                raise ValueError(f"{name} = {list(ends)}: needs low < high")
        if self.when and self.grid is not None:
            raise ValueError("when: not with grid, whose values are all tried (try choice)")
        for name, values in {"choice": self.choice, "grid": self.grid}.items():
            if values == ():
                raise ValueError(f"{name} = []: needs at least one value")
        return self

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest value; None if the values are listed."""
        return self.log or self.uniform or self.integer

    @property
    def listed(self) -> tuple[Any, ...]:
        """The values of a list; empty for a range."""
        return self.choice or self.grid or ()

    def ends(self) -> tuple[Any, ...]:
        """All listed values, or the two ends of the range."""
        return self.listed or self.range or ()

    def examples(self) -> tuple[Any, ...]:
        """Values that the setting must accept: all those listed, or the ends and the middle of the range."""
        if self.log:
            return (*self.log, math.sqrt(math.prod(self.log)))
        if self.uniform:
            return (*self.uniform, sum(self.uniform) / 2)
        return (*self.integer, sum(self.integer) // 2) if self.integer else self.listed

    def draw(self, generator: random.Random) -> Any:
        """A value at random."""
        if self.log:
            low, high = self.log
            return math.exp(generator.uniform(math.log(low), math.log(high)))
        if self.uniform:
            return generator.uniform(*self.uniform)
        return generator.randint(*self.integer) if self.integer else generator.choice(self.listed)


class Tune(Section):
    space: dict[str, Dimension] = Field({})
    """Search space: dotted setting -> {log: [low, high]}, {uniform: [low, high]}, {integer: [low, high]}, {choice: [...]} or
    {grid: [...]}; beside these, `when: {other setting: [values]}` for a setting that matters only with these values."""
    trials: int = Field(4, ge=1)
    """Number of trials; with a grid, of trials at each of its points. A larger number extends a search."""
    sampler: Literal["random", "tpe"] = "random"
    """How points are chosen: at random, or by Optuna's tree-structured Parzen estimator from the scores so far."""
    concurrent: int | None = Field(None, ge=1)
    """Most trials at the same time; fewer where the free CPUs and GPUs of the cluster are not enough."""
    grace_steps: int = Field(100, ge=1)
    """Steps before a trial may be stopped: the first rung. Each further rung is `reduction` times as far."""
    reduction: int = Field(2, ge=2)
    """At each rung, one of this many trials continues; the others are stopped early."""
    hours: float | None = Field(None, gt=0)
    """Hours, all attempts together, after which the search ends with the best trial so far; a larger value resumes it."""
    confirm_seeds: int = Field(1, ge=1)
    """Seeds with which each of the two best settings is trained before one of them wins by its mean; 1: only their own."""
    evaluate: bool = False
    """Score the best checkpoint of every complete trial as jobs.evaluate does: mIoU with interval, and with the attention off."""

    def applicable(self, point: dict[str, Any]) -> dict[str, Any]:
        """The point without the settings that do not matter for it (`Dimension.when`)."""
        kept = {
            key: value
            for key, value in point.items()
            if all(name in point and point[name] in values for name, values in self.space[key].when.items())
        }
        return kept if len(kept) == len(point) else self.applicable(kept)

    @model_validator(mode="after")
    def _conditions(self) -> Self:
        for key, dimension in self.space.items():
            for name in dimension.when:
                if name == key or name not in self.space:
                    raise ValueError(
                        f"space.{key}: when.{name}: is no other setting of the space (try one of {', '.join(self.space)})"
                    )
        return self

    @model_validator(mode="after")
    def _seeds(self) -> Self:
        if self.confirm_seeds > 1 and "seed" in self.space:
            raise ValueError("confirm_seeds: the space has seed already (try confirm_seeds=1, or leave seed out of the space)")
        return self
