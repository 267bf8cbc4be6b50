"""Settings of a hyperparameter search."""

import math
from typing import Any, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section


class Dimension(Section):
    log: tuple[float, float] | None = None
    """Log-uniform range [low, high]."""
    choice: tuple[Any, ...] | None = None
    """Values to choose from at random."""
    grid: tuple[Any, ...] | None = None
    """Values that are all tried, each with all those of the other grids."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.log, self.choice, self.grid].count(None) != 2:
            raise ValueError("needs exactly one of log: [low, high], choice: [a, b, ...] and grid: [a, b, ...]")
        if self.log and not 0 < self.log[0] < self.log[1]:
            raise ValueError(f"log = {list(self.log)}: needs 0 < low < high")
        for name, values in {"choice": self.choice, "grid": self.grid}.items():
            if values == ():
                raise ValueError(f"{name} = []: needs at least one value")
        return self

    def examples(self) -> tuple[Any, ...]:
        """Values that the setting must accept: all those listed, or the ends and the middle of the range."""
        return self.choice or self.grid or (*(self.log or ()), math.sqrt(math.prod(self.log or (1,))))


class Tune(Section):
    space: dict[str, Dimension] = Field({})
    """Search space: dotted setting -> {log: [low, high]}, {choice: [...]} or {grid: [...]}."""
    trials: int = Field(4, ge=1)
    """Number of trials; with a grid, of trials at each of its points."""
    concurrent: int | None = Field(None, ge=1)
    """Trials at the same time; by default as many as the CPUs and GPUs of the cluster allow."""
    grace_steps: int = Field(100, ge=1)
    """Steps before ASHA may stop a trial."""
    reduction: int = Field(2, ge=2)
    """ASHA keeps one of this many trials at each rung."""
    evaluate: bool = False
    """Score the best checkpoint of every complete trial as jobs.evaluate does: mIoU with interval, and with the attention off."""
