"""A search under way: writes each event into the journal and into MLflow, and knows what is to be trained next."""

import logging
import math
import time
from collections.abc import Callable, Collection
from typing import Any

from pipeline.config.config import Config
from pipeline.formatting import duration, size
from pipeline.tracking import runs
from pipeline.tracking.client import first_line
from pipeline.training.run import Run
from pipeline.training.train import STOPPED
from pipeline.tuning import rungs
from pipeline.tuning.forecast import Forecast
from pipeline.tuning.journal import Journal, Report, Trial
from pipeline.tuning.points import num_points, suggest
from pipeline.tuning.rungs import Plan, Stage

logger = logging.getLogger(__name__)

INTERRUPTED = "the search ended before this trial; the same command resumes both"


def plan_of(config: Config, waits: bool) -> Plan:
    """What the search of this configuration may train."""
    tune = config.tune
    return Plan(num_points(config), rungs.rungs(config), config.train.steps, tune.reduction, waits, tune.confirm_seeds)


class Progress:
    """A search under way. One driver at a time has it: the holder of the lease on the search's folder."""

    def __init__(self, parent: Run, key: str, journal: Journal, plan: Plan, refresh: Callable[["Progress"], None]) -> None:
        """`refresh`: called after the end of each stage, to show the search so far."""
        self.parent, self.key, self.journal, self.plan, self.refresh = parent, key, journal, plan, refresh
        self.began: dict[str, float] = {}
        self.faults: dict[str, int] = {}
        """Failures in a row without a new step, of each trial."""
        self.forecast: Forecast | None = None
        """None if nothing could be measured."""
        self.spent_before_s, self.started = float(journal.facts.get("spent_s", 0.0)), time.monotonic()

    @property
    def spent_s(self) -> float:
        """Seconds of all attempts of the search."""
        return self.spent_before_s + time.monotonic() - self.started

    def exhausted(self) -> str | None:
        """Why the search ends before its trials; None if it does not."""
        hours = self.parent.config.tune.hours
        if hours is None or self.spent_s < hours * 3600:
            return None
        return f"tune.hours = {hours:g} are spent: a larger value resumes the search"

    def next_stage(self, live: Collection[str]) -> Stage | None:
        return rungs.next_stage([trial for _, trial in sorted(self.journal.trials.items())], live, self.plan)

    def begin(self, stage: Stage) -> Trial | None:
        """Notes that a stage starts; a new trial gets its point. None if the trial cannot train."""
        trial = self.journal.trials.get(stage.name) or self._new(stage)
        refusal, expected, gflop = self._expected_of(trial, stage)
        trial = trial._replace(gflop=gflop or trial.gflop)
        if refusal:
            logger.warning("trial %s  is not trained: %s  %s", stage.name, refusal, shown(trial.overrides))
            self._put(trial._replace(state="refused", reason=refusal))
            return None
        self._put(trial._replace(state="running", reason="", until=stage.until))
        self.began[stage.name] = time.monotonic()
        logger.info("trial %s  from step %d to %d  %s%s", stage.name, trial.step, stage.until, shown(trial.overrides), expected)
        return self.journal.trials[stage.name]

    def _expected_of(self, trial: Trial, stage: Stage) -> tuple[str, str, float | None]:
        """Why a trial cannot train, if so, what its stage is expected to take, and `Trial.gflop`; empty if that is not known."""
        if self.forecast is None:
            return "", "", None
        try:
            seconds = self.forecast.stage_s(trial.overrides, trial.step, stage.until)
            needed = size(self.forecast.cost(trial.overrides).peak_bytes)
            gflop = round(self.forecast.gflop(trial.overrides), 2)
            return self.forecast.refusal(trial.overrides), f"  (about {duration(seconds)}, {needed})", gflop
        except Exception as error:
            self._end_forecast(error)
            return "", "", None

    def expected(self) -> str:
        """How long the search still takes, as far as that can be said."""
        if self.forecast is None:
            return ""
        try:
            left_s = self.forecast.left_s(list(self.journal.trials.values()), self.plan)
        except Exception as error:
            self._end_forecast(error)
            return ""
        return f"the search takes about {duration(left_s)} more" if left_s else ""

    def _end_forecast(self, error: Exception) -> None:
        """Continues without a forecast: a count that fails must not end a search."""
        logger.warning("no forecast any more: %s: %s", type(error).__name__, first_sentence(str(error)))
        self.forecast = None

    def _put(self, trial: Trial) -> None:
        """Writes a trial's record, unless another driver has taken the search over. Raises LeaseError."""
        self.parent.claim.check()
        self.journal.put(trial)

    def _new(self, stage: Stage) -> Trial:
        origin, dash, number = stage.name.partition("-seed")
        if dash:
            seed = (self.parent.config.seed + int(number)) % 2**32
            return Trial(stage.name, self.journal.trials[origin].overrides | {"seed": seed}, stage.until)
        earlier = self.journal.points()
        return Trial(stage.name, suggest(self.parent.config, len(earlier), earlier), stage.until)

    def report(self, name: str, step: int, miou: float, caveat: str) -> None:
        """Notes a validation."""
        trial = self.journal.trials[name]
        self.faults.pop(name, None)
        seconds = trial.seconds + time.monotonic() - self.began[name]
        self._put(trial.reported(Report(step, number(miou), round(seconds, 1))))
        logger.info("trial %s  step %d  %s", name, step, f"mIoU {miou:.4f} {caveat}".rstrip())

    def end(self, name: str, outcome: dict[str, Any]) -> int:
        """Notes how a stage ended. Returns the number of failures in a row; 0 if it did not fail, or is not tried again."""
        trial = self.journal.trials[name]
        trial = trial._replace(seconds=round(trial.seconds + time.monotonic() - self.began.pop(name), 1))
        if fault := outcome.get("fault"):
            return self._failed(trial, str(fault), bool(outcome["again"]))
        self.faults.pop(name, None)
        step, reason = int(outcome["step"]), outcome.get("reason")
        trial = trial._replace(run_id=outcome["run_id"], trained_s=round(outcome.get("trained_s", trial.trained_s), 1))
        if "best_miou" in outcome:
            trial = trial._replace(miou=number(outcome["best_miou"]), caveat=outcome["caveat"], score=outcome.get("score"))
        if reason == STOPPED:
            self._put(trial)
        else:
            trial = trial.reported(Report(step, number(outcome["miou"]), trial.seconds))
            ended = bool(reason) or step >= self.plan.steps
            self._put(trial._replace(state="complete" if ended else "paused", reason=reason or ""))
            for left in rungs.left_behind(list(self.journal.trials.values()), self.plan):
                self._put(left)
                logger.info("trial %s  stopped: %s", left.name, left.reason)
            if expected := self.expected():
                logger.info("%s", expected)
        self._try_to_show()
        return 0

    def leave(self, name: str) -> None:
        """Notes that a stage was ended from here; it is resumed by the next driver."""
        trial = self.journal.trials[name]
        self._put(trial._replace(seconds=round(trial.seconds + time.monotonic() - self.began.pop(name), 1)))

    def _failed(self, trial: Trial, fault: str, again: bool) -> int:
        count = self.faults[trial.name] = self.faults.get(trial.name, 0) + 1
        limit = self.parent.config.faults.max_failures
        if again and count <= limit:
            self._put(trial)
            logger.warning("trial %s  failed and is tried again (%d of %d): %s", trial.name, count, limit, first_sentence(fault))
            return count
        self._put(trial._replace(state="failed", reason=fault))
        logger.warning("trial %s  failed: %s", trial.name, fault)
        self._try_to_show()
        return 0

    def show(self) -> None:
        """Shows the search so far in MLflow."""
        self.journal.describe(spent_s=round(self.spent_s, 1))
        self.settle()
        self.refresh(self)

    def settle(self) -> None:
        """Makes the status of the MLflow run of every trial that does not train that of the journal."""
        found = statuses(self.key, self.journal, self.began)
        runs.settle_children(self.parent.tracking_uri, self.parent.run_id, found)

    def _try_to_show(self) -> None:
        """Shows the search so far, or not if MLflow is away: the next event shows it again."""
        try:
            self.show()
        except Exception as error:
            logger.warning("MLflow does not show the search so far: %s", first_line(error, self.parent.tracking_uri))


def statuses(key: str, journal: Journal, live: Collection[str]) -> dict[str, tuple[str, str]]:
    """Run key -> (status, reason) that the MLflow run of each trial has by the journal; one that nobody trains is not RUNNING."""
    states = {"paused": "SCHEDULED", "stopped": "FINISHED", "complete": "FINISHED", "failed": "FAILED", "refused": "FAILED",
              "running": "KILLED"}  # fmt: skip
    return {
        f"{key}-{trial.name}": (states[trial.state], INTERRUPTED if trial.state == "running" else trial.reason)
        for trial in journal.trials.values()
        if trial.name not in live
    }


def open_journal(parent: Run) -> Journal:
    """The journal of the search, with failed and refused trials to be tried again: the cluster may be another one."""
    journal = Journal(parent.checkpoints)
    for trial in list(journal.trials.values()):
        if trial.state in ("failed", "refused"):
            journal.put(trial._replace(state="running", reason=""))
    return journal


def shown(overrides: dict[str, Any]) -> str:
    """The settings of a point in a line."""
    return "  ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in overrides.items())


def number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or math.isnan(value) else value


def first_sentence(text: str) -> str:
    """The first line of a fault."""
    return text.splitlines()[0] if text else text
