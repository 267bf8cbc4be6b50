"""The state of a search: small JSON objects in its folder, `search.json` and `trials/NAME.json`, each rewritten whole.

Everything a search decides follows from them, so a search that was killed resumes as if nothing had happened.
"""

import json
from typing import Any, Literal, NamedTuple

from pipeline.errors import CheckpointError
from pipeline.storage.store import Store

SEARCH, TRIALS = "search.json", "trials"
State = Literal["running", "paused", "stopped", "complete", "failed", "refused"]
"""running: also if a stopped search left it; paused: at a rung; stopped: at a rung that others passed with higher scores;
refused: not trained, because it cannot fit into memory."""


class Report(NamedTuple):
    """A validation."""

    step: int
    miou: float | None
    """None if it is not a number."""
    seconds: float
    """Of all the trial's stages so far."""


class Trial(NamedTuple):
    """A point of the space and what is known of its training."""

    name: str
    """Four digits, such as `0007`; `0007-seed1` trains the same point with another seed."""
    overrides: dict[str, Any]
    until: int
    """Step at which the present stage ends, or at which the last one ended."""
    state: State = "running"
    reason: str = ""
    """Why it was stopped or failed; empty otherwise."""
    reports: tuple[Report, ...] = ()
    seconds: float = 0.0
    """Duration of all stages that ended, with the start and the end of their workers."""
    trained_s: float = 0.0
    """Seconds for which its workers trained."""
    run_id: str = ""
    miou: float | None = None
    """That of its best checkpoint; None before there is one, and if it is not a number."""
    caveat: str = ""
    """What speaks against this score; empty if nothing does."""
    gflop: float | None = None
    """1e9 operations of one training image, forward and backward; None if they were not counted."""
    score: dict[str, Any] | None = None
    """That of `jobs.evaluate` for the best checkpoint, if `tune.evaluate` asks for it."""

    @property
    def step(self) -> int:
        """The last validated step."""
        return self.reports[-1].step if self.reports else 0

    @property
    def order(self) -> tuple[bool, bool, float, str]:
        """Sort key, best first. A score with a caveat, such as one over fewer classes, comes after all those without one."""
        return self.miou is None, bool(self.caveat), -(self.miou or 0), self.name

    @property
    def confirms(self) -> str:
        """The trial whose point this one trains with another seed; empty if it is a point of its own."""
        name, dash, _ = self.name.partition("-")
        return name if dash else ""

    def at(self, rung: int) -> float | None:
        """The score by which the trial is compared at a rung: that of the first validation there or after it."""
        return next((report.miou for report in self.reports if report.step >= rung), None)

    def reached(self, rung: int) -> bool:
        return self.step >= rung

    def reported(self, report: Report) -> "Trial":
        """With one more validation. A repeated one counts once, with its first values."""
        if any(known.step == report.step for known in self.reports):
            return self
        return self._replace(reports=tuple(sorted([*self.reports, report])))


class Journal:
    """The trials of a search by name, as its folder `store` has them. Only the holder of the folder's lease may write."""

    def __init__(self, store: Store) -> None:
        """Reads what earlier drivers wrote. Raises CheckpointError for a record that this version cannot read."""
        self.store = store
        self.trials: dict[str, Trial] = {}
        for key in sorted(store.list(TRIALS)):
            trial = _parsed(store.url(key), store.read(key))
            self.trials[trial.name] = trial
        self.facts: dict[str, Any] = _tree(store.url(SEARCH), store.read(SEARCH)) if store.exists(SEARCH) else {}

    def describe(self, **facts: Any) -> None:
        """Adds what holds for the whole search."""
        self.facts |= facts
        self.store.write(SEARCH, json.dumps(self.facts, indent=1).encode())

    def put(self, trial: Trial) -> None:
        """Writes a trial's record."""
        self.trials[trial.name] = trial
        self.store.write(f"{TRIALS}/{trial.name}.json", json.dumps(trial._asdict(), indent=1).encode())

    def points(self) -> list[Trial]:
        """The trials by number, without those that confirm one."""
        return [trial for _, trial in sorted(self.trials.items()) if not trial.confirms]


def _parsed(url: str, data: bytes) -> Trial:
    tree = _tree(url, data)
    try:
        trial = Trial(**tree)
        return trial._replace(reports=tuple(Report(*report) for report in trial.reports))
    except TypeError as error:
        raise CheckpointError(_unreadable(url, error)) from error


def _tree(url: str, data: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise CheckpointError(_unreadable(url, error)) from error
    if not isinstance(tree, dict):
        raise CheckpointError(_unreadable(url, TypeError(f"holds a {type(tree).__name__}")))
    return tree


def _unreadable(url: str, error: Exception) -> str:
    return f"{url}: is not a record that this version reads ({error}); give the search another name (name=...)"
