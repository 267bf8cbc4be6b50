"""Settings of a hyperparameter search."""

import math
from typing import Any, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section


class Dimension(Section):
    log: tuple[float, float] | None = None
    """Log-uniform range [low, high]."""
    choice: tuple[Any, ...] | None = None
    """Values to choose from."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.log is None) == (self.choice is None):
            raise ValueError("needs exactly one of log: [low, high] and choice: [a, b, ...]")
        if self.log and not 0 < self.log[0] < self.log[1]:
            raise ValueError(f"log = {list(self.log)}: needs 0 < low < high")
        if self.choice is not None and not self.choice:
            raise ValueError("choice = []: needs at least one value")
        return self

    def examples(self) -> tuple[Any, ...]:
        """Values that the setting must accept: all choices, or the ends and the middle of the range."""
        return self.choice if self.choice else (*(self.log or ()), math.sqrt(math.prod(self.log or (1,))))


class Tune(Section):
    space: dict[str, Dimension] = Field({})
    """Search space: dotted setting -> {log: [low, high]} or {choice: [...]}."""
    trials: int = Field(4, ge=1)
    """Number of trials."""
    concurrent: int | None = Field(None, ge=1)
    """Trials at the same time; by default as many as the CPUs and GPUs of the cluster allow."""
    grace_steps: int = Field(100, ge=1)
    """Steps before ASHA may stop a trial."""
    reduction: int = Field(2, ge=2)
    """ASHA keeps one of this many trials at each rung."""
