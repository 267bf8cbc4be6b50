"""What a search leaves: the model of its best trial, and a page of all of it, in the bucket and in MLflow."""

import logging
import signal
from collections.abc import Sequence
from typing import Any

from pipeline.checkpoints import checkpoint
from pipeline.config.load import override
from pipeline.errors import CheckpointError, RunFailed
from pipeline.evaluation.metrics import Score
from pipeline.reports.training import PAGE, log_page
from pipeline.tracking import registry, runs
from pipeline.training.best import best_of, deliver_best, record_best
from pipeline.training.run import Run
from pipeline.training.train import STOPPED
from pipeline.tuning.journal import Trial
from pipeline.tuning.progress import Progress
from pipeline.tuning.report import first_rung_importances, write_page
from pipeline.tuning.result import SearchResult, ranked
from pipeline.tuning.trials import trial_config, trial_store

logger = logging.getLogger(__name__)


def record_end(progress: Progress, signals: Sequence[int] = ()) -> SearchResult:
    """Delivers, records and registers the best model of a search that trains no more, and ends its MLflow run.

    `signals`: those that interrupted it. Raises RunFailed if all trials failed, and CheckpointError if none has a checkpoint.
    """
    parent, key = progress.parent, progress.key
    trials = ranked(list(progress.journal.trials.values()))
    reason = STOPPED if signals else (progress.exhausted() or "" if progress.next_stage(()) else "")
    if trials and all(trial.state in ("failed", "refused") for trial in trials):
        raise RunFailed(f"all {len(trials)} trials failed; the first: {min(trials).reason}")
    # A search that was interrupted is resumed later, and has no time for a copy now.
    recording = override(parent.config, {"tracking.log_model": parent.config.tracking.log_model and not signals})
    found = _register_best(parent._replace(config=recording), key, trials)
    if found is None:
        if signals:
            raise KeyboardInterrupt if [*signals] == [signal.SIGINT] else SystemExit(143)  # 128 + SIGTERM
        raise CheckpointError(f"{parent.config.runs_url}/{key}: no trial stored a checkpoint{f'; {reason}' if reason else ''}")
    winner, score, recorded = found
    trials.sort(key=lambda trial: trial.name != winner.name)  # the first one that stored a checkpoint
    progress.show()
    result = SearchResult(
        parent.run_id,
        parent.tracking_uri,
        trials,
        parent.config.train.steps,
        score,
        recorded["model_url"],
        parent.checkpoints.url(PAGE),
        reason,
        next(iter(signals), 0),
        first_rung_importances(progress),
        parent.config.train.threads,
    )
    log_page(parent.tracking_uri, parent.run_id, write_page(parent, key, result, recorded))
    runs.finish_run(parent.tracking_uri, parent.run_id, "KILLED" if signals else "FINISHED", reason)
    return result


def _register_best(parent: Run, key: str, trials: list[Trial]) -> tuple[Trial, Score, dict[str, Any]] | None:
    """Delivers the best checkpoint of the best trial that has one, records it in the parent's run, and registers it.

    The registered version belongs to the trial's run, whose settings trained it. Returns the trial, its score and what was
    recorded; None if no trial has a checkpoint.
    """
    for trial in trials:
        config = trial_config(parent.config, trial.overrides)
        run = parent._replace(config=config, checkpoints=trial_store(config, key, trial.name), run_id=trial.run_id)
        if trial.run_id and checkpoint.best(run.checkpoints):
            best, score = best_of(run)
            recorded = record_best(run, best, score, deliver_best(run, best, score, key))
            registry.log_best(parent.tracking_uri, parent.run_id, **recorded)
            return trial, score, recorded
        logger.warning("trial %s has no checkpoint with a score that can be read", trial.name)
    return None
