"""What a search found: the order of its trials, the winner, and how both are shown."""

import json
import shlex
from collections.abc import Mapping
from math import nan, sqrt
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

from pipeline.evaluation.metrics import Score
from pipeline.formatting import percent, table
from pipeline.tuning.journal import Trial

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Number of seeds -> 97.5 % quantile of Student's t with one degree of freedom less. For more, the last one is a bit wide."""
ENDS = {"running": "unfinished", "paused": "pending", "stopped": "stopped early", "complete": "complete", "failed": "failed",
        "refused": "not trained"}  # fmt: skip
REPRODUCE = "reproduce the best: add to the search's configuration and overrides"


class Confirmed(NamedTuple):
    """The scores of one point with several seeds."""

    name: str
    mious: list[float]

    @property
    def mean(self) -> float:
        return mean(self.mious)

    def __str__(self) -> str:
        half = STUDENT_95[min(len(self.mious), max(STUDENT_95))] * stdev(self.mious) / sqrt(len(self.mious))
        values = ", ".join(f"{miou:.4f}" for miou in self.mious)
        return f"{self.mean:.4f} +- {half:.4f} (95 %, t, {len(self.mious)} seeds: {values})"


class Cost(NamedTuple):
    """What a search has spent."""

    steps: int
    """Optimizer steps that were trained, each once."""
    saved: int
    """Steps that trials which were stopped early would have trained to their end."""
    seconds: float
    """Of all stages, with start and end of their workers; summed over trials."""
    trained_s: float
    """Of these, seconds in which workers trained, until their last checkpoint: its validation counts as stopping."""

    @classmethod
    def of(cls, trials: list[Trial], steps: int) -> "Cost":
        return cls(
            sum(trial.step for trial in trials),
            sum(steps - trial.step for trial in trials if trial.state == "stopped"),
            sum(trial.seconds for trial in trials),
            sum(trial.trained_s for trial in trials),
        )

    def __str__(self) -> str:
        waited = percent(1 - self.trained_s / self.seconds) if self.seconds else "-"
        share = percent(self.saved / (self.steps + self.saved)) if self.saved else "none"
        return (
            f"{self.steps:,} steps trained, {share} saved by stopping early; {self.seconds / 60:.1f} min of trials, {waited} of "
            "it in starting and stopping"
        )


class SearchResult(NamedTuple):
    """A search that ended: the trials, the winner first, and where its MLflow run is."""

    run_id: str
    tracking_uri: str
    trials: list[Trial]
    steps: int
    """Steps of a complete trial."""
    score: Score
    """Score of the winner's best checkpoint."""
    model_url: str
    """Folder of that checkpoint, delivered as a model: `ccnet.load` reads it."""
    report_url: str
    """HTML page with all of it."""
    stopped: str = ""
    """Why the search ended before its trials; empty if it did not."""
    signal: int = 0
    """The signal that ended it; 0 if none did."""
    importances: Mapping[str, float] = MappingProxyType({})
    """`points.importances` at the first rung."""
    threads: int | None = None
    """Torch threads of each worker of a trial: with another number, sums on a CPU round differently."""

    def table(self) -> str:
        """One line per trial, what the search spent, and the overrides that reproduce the winner."""
        parts = (
            trials_table(self.trials),
            summary(self.trials, self.steps, self.importances),
            f"{REPRODUCE}\n{reproduced(self.trials[0], self.threads)}",
        )
        return "\n\n".join(parts)


def ranked(trials: list[Trial]) -> list[Trial]:
    """The trials, the winner first: the point with the highest mean over several seeds, if there are such; else by mIoU."""
    order = sorted(trials, key=lambda trial: trial.order)
    if points := confirmed(trials):
        order.sort(key=lambda trial: trial.name != points[0].name)
    return order


def confirmed(trials: list[Trial]) -> list[Confirmed]:
    """The points whose other seeds are all complete, the highest mean first."""
    found = []
    for trial in trials:
        others = [other for other in trials if other.confirms == trial.name]
        scores = [other.miou for other in (trial, *others) if other.state == "complete" and other.miou is not None]
        if others and len(scores) == len(others) + 1:
            found.append(Confirmed(trial.name, scores))
    return sorted(found, key=lambda point: (-point.mean, point.name))


def trials_table(trials: list[Trial]) -> str:
    """One line per trial."""
    return table(*trial_rows(trials))


def trial_rows(trials: list[Trial]) -> tuple[list[str], list[list[str]]]:
    """(headings, a row of cells for each trial)."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.overrides))
    rows = [
        [
            trial.name,
            *(value_text(trial.overrides.get(key, "-")) for key in keys),
            "-" if trial.miou is None else f"{trial.miou:.4f} {trial.caveat}".rstrip(),
            str(trial.step),
            f"{trial.seconds:.0f}",
            ENDS[trial.state],
        ]
        for trial in trials
    ]
    head = ["trial", *keys, "mIoU", "step", "seconds", "ended"]
    if any(trial.gflop for trial in trials):
        head += ["GFLOP"]
        rows = [[*row, f"{trial.gflop:.3g}" if trial.gflop else "-"] for row, trial in zip(rows, trials, strict=True)]
    if any(trial.score for trial in trials):
        head += ["interval", "attention off", "gamma"]
        rows = [[*row, *_evaluated(trial.score)] for row, trial in zip(rows, trials, strict=True)]
    return head, rows


def best_for_cost(trials: list[Trial]) -> list[Trial]:
    """The complete trials than which none is both cheaper and better (the Pareto front), the cheapest first."""
    known = [trial for trial in trials if trial.state == "complete" and trial.gflop and trial.miou is not None]
    found: list[Trial] = []
    for trial in sorted(known, key=lambda trial: (trial.gflop, trial.order)):
        if not found or trial.order < found[-1].order:
            found.append(trial)
    return found


def summary(trials: list[Trial], steps: int, importances: Mapping[str, float]) -> str:
    """Cost, what mattered, the scores of the best points over several seeds, and the reasons of trials that failed."""
    lines = [str(Cost.of(trials, steps))]
    if importances:
        shares = ", ".join(f"{key} {percent(share)}" for key, share in importances.items())
        lines.append(f"what decided at the first rung (PED-ANOVA): {shares}")
    lines += [f"trial {point.name}: mIoU {point}" for point in confirmed(trials)]
    if len(front := best_for_cost(trials)) > 1:
        shown = ", ".join(f"{trial.name} (mIoU {trial.miou:.4f} for {trial.gflop:.3g})" for trial in front)
        lines.append(f"no complete trial is both better and cheaper, in GFLOP of one training image: {shown}")
    lines += [f"trial {trial.name} failed: {trial.reason}" for trial in trials if trial.state == "failed"]
    lines += [f"trial {trial.name} was not trained: {trial.reason}" for trial in trials if trial.state == "refused"]
    return "\n".join(lines)


def reproduced(winner: Trial, threads: int | None) -> str:
    """The overrides that reproduce a trial, for a shell. `threads`: those of its workers."""
    own = {"train.threads": str(threads)} if threads else {}
    values = own | {key: value if isinstance(value, str) else json.dumps(value) for key, value in winner.overrides.items()}
    return shlex.join(f"{key}={value}" for key, value in values.items())


def value_text(value: Any) -> str:
    """A setting's value as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _evaluated(score: dict[str, Any] | None) -> list[str]:
    """Interval of the mIoU, mIoU with the attention off, gamma; `-` for what was not measured."""
    if score is None:
        return ["-"] * 3
    found = Score(**score)
    low, high = found.interval or (nan, nan)
    return [f"{low:.4f} to {high:.4f}", *("-" if x is None else f"{x:.4f}" for x in (found.attention_off_miou, found.gamma))]
