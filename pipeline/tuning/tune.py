"""Search space -> trials -> the same training function: learning rate, crop size and R under ASHA."""

import json
import logging
import math
import shlex
import time
from functools import partial
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.checkpoints import checkpoint
from pipeline.cluster import connect
from pipeline.config.base import Dimension
from pipeline.config.config import Config
from pipeline.config.load import ConfigError, override
from pipeline.evaluation.metrics import Score
from pipeline.fault_tolerance.failures import RunFailed, cause
from pipeline.preflight.resources import cpus_needed
from pipeline.storage.store import Store, open_store
from pipeline.tracking import registry, runs
from pipeline.tracking.metric_log import MetricLog
from pipeline.tracking.provenance import environment
from pipeline.training.run import Job, open_job
from pipeline.training.train import best_facts, best_of, build_trainer, end_run, record_best

logger = logging.getLogger(__name__)


class Trial(NamedTuple):
    """One trial as it ended."""

    number: str
    overrides: dict[str, Any]
    miou: float
    step: int
    stopped_early: bool
    run_id: str


class SearchResult(NamedTuple):
    """A finished search: the trials, best first, and where its MLflow run is."""

    run_id: str
    trials: list[Trial]
    score: Score
    """Of the best trial's best checkpoint."""

    def table(self) -> str:
        """One line per trial, and the overrides that reproduce the winner."""
        keys = list(self.trials[0].overrides)
        rows = [["trial", *keys, "mIoU", "step", "ended"]]
        for trial in self.trials:
            values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.overrides.values()]
            rows.append(
                [
                    trial.number,
                    *values,
                    f"{trial.miou:.4f}",
                    str(trial.step),
                    "stopped early" if trial.stopped_early else "complete",
                ]
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        winner = shlex.join(f"{key}={json.dumps(value)}" for key, value in self.trials[0].overrides.items())
        return "\n".join([*lines, "", f"reproduce the best: the search's configuration and overrides, and\n{winner}"])


def search(config: Config) -> SearchResult:
    """Runs `tune.trials` trials; MLflow holds one parent run and a child for each. Raises ConfigError for an empty space."""
    if not config.tune.space:
        raise ConfigError(["tune.space: missing; name at least one setting, such as train.learning_rate: {log: [0.003, 0.1]}"])
    key = f"{config.name}-search-{time.strftime('%Y%m%d-%H%M%S')}"
    parent = open_job(config, run_key=key)
    try:
        grid = _run_trials(parent, key)
        ended = (grid[i] for i in range(len(grid)) if grid[i].error is None)
        trials = sorted((_end_trial(parent, key, result) for result in ended), key=lambda trial: -trial.miou)
        score = _crown(parent, key, trials)
    except BaseException as error:
        end_run(parent, error)
        raise
    runs.finish_run(parent.tracking_uri, parent.run_id, "FINISHED")
    return SearchResult(parent.run_id, trials, score)


def _run_trials(parent: Job, key: str) -> tune.ResultGrid:
    config, settings = parent.config, parent.config.tune
    file_system, path = open_store(config.runs_url, config.storage).arrow()
    # One step past the last: a trial that trains to its end closes itself, instead of being stopped while it saves.
    scheduler = ASHAScheduler(
        time_attr="step", max_t=config.train.steps + 1, grace_period=settings.grace_steps, reduction_factor=settings.reduction
    )
    # Tune ignores max_concurrent_trials beside a search algorithm of this class; more trials than fit starve one another's data.
    concurrent = settings.concurrent or concurrent_trials(config, ray.cluster_resources())
    lines = _Lines()
    tuner = tune.Tuner(
        tune.with_resources(partial(run_trial, parent=parent, key=key), {"CPU": 0.01}),
        param_space={setting: _domain(dimension) for setting, dimension in settings.space.items()},
        tune_config=tune.TuneConfig(
            metric="miou",
            mode="max",
            num_samples=settings.trials,
            scheduler=scheduler,
            search_alg=BasicVariantGenerator(max_concurrent=concurrent, random_state=config.seed),
        ),
        run_config=tune.RunConfig(name=key, storage_path=path, storage_filesystem=file_system, callbacks=[lines], verbose=0),
    )
    grid = tuner.fit()
    if len(lines.ended) + len(grid.errors) < len(grid):
        raise KeyboardInterrupt  # Tune swallows the first one and returns what there is
    if len(grid.errors) == len(grid):
        raise RunFailed(f"all {len(grid)} trials failed; the first: {cause(grid.errors[0])}")
    for error in grid.errors:
        logger.warning("a trial failed and is left out: %s", cause(error))
    return grid


def run_trial(overrides: dict[str, Any], *, parent: Job, key: str) -> None:
    """One trial: the training of `jobs.train` under its overrides, reporting the global mIoU of every validation to Tune."""
    job = trial_job(parent, overrides, key, tune.get_context().get_trial_id())
    try:
        build_trainer(job, [TuneScoreCallback()]).fit()  # type: ignore[no-untyped-call]
    except Exception as error:
        end_run(job, error)
        raise


def trial_job(parent: Job, overrides: dict[str, Any], key: str, number: str) -> Job:
    """The job of a trial: its own checkpoints, and an MLflow run that is the parent's child."""
    config = trial_config(parent.config, overrides)
    run_id = runs.open_run(
        config,
        environment=environment(),
        run_key=f"{key}-{number}",
        parent_run_id=parent.run_id,
        run_name=f"{key}-{number}",
    )
    return parent._replace(
        config=config,
        checkpoints=_checkpoints(config, key, number),
        run_id=run_id,
        on_gpus=connect.gpus_for(config.train.fewest_workers),
    )


def trial_config(config: Config, overrides: dict[str, Any]) -> Config:
    """A trial's settings, with the fewest workers that may be: those fit the cluster, and elastic trials would take one another's
    CPUs. The global batches, and so what is learnt, are the same for any number. Validated in place: ASHA waits for scores."""
    config = override(config, overrides)
    return override(config, {"train.workers": config.train.fewest_workers, "evaluate.apart": False})


def _checkpoints(config: Config, key: str, number: str) -> Store:
    return open_store(f"{config.runs_url}/{key}-{number}", config.storage)


def concurrent_trials(config: Config, resources: dict[str, float]) -> int:
    """Trials that the cluster's CPUs, Ray Data's share included, and its GPUs hold at a time; at least one."""
    workers = config.train.fewest_workers
    by_gpu = resources.get("GPU", 0) // workers or math.inf  # too few GPUs for one trial: all run on CPUs
    return int(max(1, min(resources.get("CPU", 0) // cpus_needed(config, workers), by_gpu)))


def _domain(dimension: Dimension) -> Any:
    return tune.loguniform(*dimension.log) if dimension.log else tune.choice(list(dimension.choice or ()))


def _end_trial(parent: Job, key: str, result: Any) -> Trial:
    """The trial as it ended; sends what its spool still holds and ends its MLflow run, because ASHA kills trials outright."""
    run_id, step, number = result.metrics["run_id"], int(result.metrics["step"]), result.metrics["trial_id"]
    config = override(parent.config, dict(result.config))
    stopped_early = step < config.train.steps
    MetricLog(parent.tracking_uri, run_id).close(timeout_s=30)
    job = parent._replace(config=config, checkpoints=_checkpoints(config, key, number), run_id=run_id)
    miou = float(result.metrics["miou"])
    if checkpoint.best(job.checkpoints):
        best, score = best_of(job)
        registry.log_best(job.tracking_uri, run_id, **best_facts(best, score))
        miou = max(miou, score.miou)
    runs.finish_run(parent.tracking_uri, run_id, "KILLED" if stopped_early else "FINISHED")
    return Trial(number, dict(result.config), miou, step, stopped_early, run_id)


def _crown(parent: Job, key: str, trials: list[Trial]) -> Score:
    """Records the best checkpoint of the best trial that has one, in the parent's run and in the registry.

    ASHA may stop a trial before its first checkpoint is stored. Raises CheckpointError when no trial has one.
    """
    for trial in trials:
        job = parent._replace(checkpoints=_checkpoints(parent.config, key, trial.number))
        if checkpoint.best(job.checkpoints):
            best, score = best_of(job)
            record_best(job, best, score)
            return score
        logger.warning("trial %s was stopped before a checkpoint was stored", trial.number)
    raise checkpoint.CheckpointError(f"{parent.config.runs_url}/{key}: no trial left a checkpoint; raise tune.grace_steps")


class TuneScoreCallback(TuneReportCallback):
    """Leaves out the checkpoint of a trial that left off before its validation: Tune demands a score of every report."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if "miou" in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


class _Lines(tune.Callback):
    """A line for each result and each end of a trial."""

    def __init__(self) -> None:
        self.ended: set[str] = set()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        logger.info("trial %s  step %d  mIoU %.4f  %s", trial.trial_id, result["step"], result["miou"], trial.config)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.add(trial.trial_id)
        logger.info("trial %s  ended at step %s", trial.trial_id, trial.last_result.get("step"))
