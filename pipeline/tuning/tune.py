"""Searches settings such as learning rate, crop size and R under ASHA; each trial runs the same training function."""

import json
import logging
import shlex
import time
from functools import partial
from math import isnan, nan
from typing import NamedTuple

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.config.settings_yaml import dump_yaml
from pipeline.errors import CheckpointError, ConfigError, RunFailed
from pipeline.evaluation.metrics import Score
from pipeline.fault_tolerance.failures import root_cause
from pipeline.formatting import table
from pipeline.storage.store import open_store
from pipeline.tracking import registry, runs
from pipeline.training.best import best_of, checkpoint_summary, deliver_best, record_best
from pipeline.training.run import Run, open_run
from pipeline.training.train import end_run
from pipeline.tuning.trials import (
    Trial,
    TrialLines,
    concurrent_trials,
    domain,
    end_trial,
    run_trial,
    trial_checkpoints,
    trial_config,
)

logger = logging.getLogger(__name__)


class SearchResult(NamedTuple):
    """A finished search: the trials, best first, and where its MLflow run is."""

    run_id: str
    tracking_uri: str
    trials: list[Trial]
    score: Score
    """Score of the best trial's best checkpoint."""
    model_url: str
    """Folder of that checkpoint, delivered as a model: `ccnet.load` reads it."""

    def table(self) -> str:
        """One line per trial, and the overrides that reproduce the winner."""
        keys = list(self.trials[0].overrides)
        rows = [
            [
                trial.number,
                *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.overrides.values()),
                f"{trial.miou:.4f} {trial.caveat}".rstrip(),
                str(trial.step),
                "stopped early" if trial.stopped_early else "complete",
            ]
            for trial in self.trials
        ]
        head = ["trial", *keys, "mIoU", "step", "ended"]
        if any(trial.score for trial in self.trials):
            head += ["interval", "attention off", "gamma"]
            rows = [[*row, *_evaluated(trial.score)] for row, trial in zip(rows, self.trials, strict=True)]
        lines = table(head, rows)
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.trials[0].overrides.items()}
        winner = shlex.join(f"{key}={value}" for key, value in values.items())
        return f"{lines}\n\nreproduce the best: add to the search's configuration and overrides\n{winner}"


def _evaluated(score: Score | None) -> list[str]:
    """Interval of the mIoU, mIoU with the attention off, gamma; `-` for what was not measured."""
    if score is None:
        return ["-"] * 3
    low, high = score.interval or (nan, nan)
    return [f"{low:.4f} to {high:.4f}", *("-" if x is None else f"{x:.4f}" for x in (score.attention_off_miou, score.gamma))]


def search(config: Config) -> SearchResult:
    """Runs `tune.trials` trials; MLflow holds one parent run and a child for each. Raises ConfigError for an empty space."""
    if not config.tune.space:
        raise ConfigError(["tune.space: missing; name at least one setting, such as train.learning_rate: {log: [0.003, 0.1]}"])
    key = f"{config.name}-search-{time.strftime('%Y%m%d-%H%M%S')}"
    with open_run(config, run_key=key) as parent:
        return _search(parent, key)


def _search(parent: Run, key: str) -> SearchResult:
    try:
        grid = _run_trials(parent, key)
        ended = (grid[i] for i in range(len(grid)) if grid[i].error is None)
        trials = sorted((end_trial(parent, key, result) for result in ended), key=lambda trial: (isnan(trial.miou), -trial.miou))
        score, model_url = _register_best(parent, key, trials)
        result = SearchResult(parent.run_id, parent.tracking_uri, trials, score, model_url)
        _describe(parent, result)
    except BaseException as error:
        end_run(parent, error)
        raise
    runs.finish_run(parent.tracking_uri, parent.run_id, "FINISHED")
    return result


def _describe(parent: Run, result: SearchResult) -> None:
    """Puts the table of trials, the figures of the search and the winner's configuration on the page of its MLflow run."""
    uri, config, trials = parent.tracking_uri, parent.config, result.trials
    winner = override(trial_config(config, trials[0].overrides), {"tune.space": {}})
    trained = sum(trial.step for trial in trials)
    figures = {
        "search/best_miou": result.score.miou,
        "search/trials": len(trials),
        "search/trained_steps": trained,
        "search/saved_steps": len(trials) * config.train.steps - trained,
    }
    note = f"Best mIoU **{result.score.miou:.4f}**, model {result.model_url}\n\n```\n{result.table()}\n```\n"
    runs.describe(
        uri, parent.run_id, f"{note}\n`winner.yaml` among the artifacts trains the winner: `ccnet train winner.yaml`", figures
    )
    runs.log_text(uri, parent.run_id, "winner.yaml", dump_yaml(winner.record()))


def _run_trials(parent: Run, key: str) -> tune.ResultGrid:
    config, settings = parent.config, parent.config.tune
    file_system, path = open_store(config.runs_url, config.storage).arrow()
    # One step past the last, so that ASHA does not stop a complete trial while it saves.
    scheduler = ASHAScheduler(
        time_attr="step", max_t=config.train.steps + 1, grace_period=settings.grace_steps, reduction_factor=settings.reduction
    )
    # Given to the search algorithm, with which Tune ignores max_concurrent_trials. More trials than fit would starve each other
    # of data.
    concurrent = settings.concurrent or concurrent_trials(config, ray.cluster_resources())
    lines = TrialLines()
    tuner = tune.Tuner(
        tune.with_resources(partial(run_trial, parent=parent, key=key), {"CPU": 0.01}),
        param_space={setting: domain(dimension) for setting, dimension in settings.space.items()},
        tune_config=tune.TuneConfig(
            metric="miou",
            mode="max",
            num_samples=settings.trials,
            scheduler=scheduler,
            search_alg=BasicVariantGenerator(max_concurrent=concurrent, random_state=config.seed),
        ),
        run_config=tune.RunConfig(name=key, storage_path=path, storage_filesystem=file_system, callbacks=[lines], verbose=0),
    )
    # Its errors are the trials' failures with their remote tracebacks, which are named below.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    grid = tuner.fit()
    if len(lines.ended) + len(grid.errors) < len(grid):
        raise KeyboardInterrupt  # Tune swallows the first one and returns the results so far
    if len(grid.errors) == len(grid):
        raise RunFailed(f"all {len(grid)} trials failed; the first: {root_cause(grid.errors[0])}")
    for error in grid.errors:
        logger.warning("a trial failed and does not count: %s", root_cause(error))
    return grid


def _register_best(parent: Run, key: str, trials: list[Trial]) -> tuple[Score, str]:
    """Delivers the best checkpoint of the best trial that has one, records it in the parent's run, and registers it.

    The registered version belongs to the trial's run, whose settings trained it. Returns its score and the address of the model.

    ASHA may stop a trial before its first checkpoint is stored. Raises CheckpointError when no trial has one.
    """
    for trial in trials:
        config = trial_config(parent.config, trial.overrides)
        run = parent._replace(config=config, checkpoints=trial_checkpoints(config, key, trial.number), run_id=trial.run_id)
        if checkpoint.best(run.checkpoints):
            best, score = best_of(run)
            model_url = deliver_best(run, best, score, key)
            record_best(run, best, score, model_url)
            registry.log_best(parent.tracking_uri, parent.run_id, **checkpoint_summary(best, score), model_url=model_url)
            return score, model_url
        logger.warning("trial %s has no checkpoint with a score that can be read", trial.number)
    raise CheckpointError(f"{parent.config.runs_url}/{key}: no trial stored a checkpoint; raise tune.grace_steps")
