"""One trial of a search: its settings, its training, its end."""

import logging
import math
from typing import Any, NamedTuple

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipeline.checkpoints import checkpoint
from pipeline.cluster import connect
from pipeline.cluster.fit import fit
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.config.tune import Dimension
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.metrics import Score
from pipeline.preflight.resources import cpus_needed
from pipeline.storage.store import Store, open_store
from pipeline.tracking import registry, runs
from pipeline.tracking.provenance import environment
from pipeline.training.best import best_of, checkpoint_summary
from pipeline.training.metric_logs import send_unsent
from pipeline.training.run import Run
from pipeline.training.train import build_trainer, end_run

logger = logging.getLogger(__name__)


class Trial(NamedTuple):
    """The result of one trial."""

    number: str
    overrides: dict[str, Any]
    miou: float
    caveat: str
    """What speaks against this score; empty if nothing does."""
    step: int
    stopped_early: bool
    run_id: str
    score: Score | None = None
    """That of `jobs.evaluate` for the best checkpoint; None if it was not asked for."""


def run_trial(overrides: dict[str, Any], *, parent: Run, key: str) -> None:
    """Trains one trial as `jobs.train` would under its overrides; reports the global mIoU of every validation to Tune."""
    run = trial_job(parent, overrides, key, tune.get_context().get_trial_id())
    try:
        fit(build_trainer(run, [TuneScoreCallback()]))  # type: ignore[no-untyped-call]
    except Exception as error:
        end_run(run, error)
        raise


def trial_job(parent: Run, overrides: dict[str, Any], key: str, number: str) -> Run:
    """The run of a trial: its own checkpoints, and an MLflow run that is a child of the parent's."""
    config = trial_config(parent.config, overrides)
    run_id = runs.open_mlflow_run(
        config,
        environment=environment(),
        run_key=f"{key}-{number}",
        parent_run_id=parent.run_id,
        run_name=f"{key}-{number}",
        class_names=parent.manifest.class_names,
    )
    return parent._replace(
        config=config,
        checkpoints=trial_checkpoints(config, key, number),
        run_id=run_id,
        on_gpus=connect.gpus_for(config.train.fewest_workers),
    )


def trial_config(config: Config, overrides: dict[str, Any]) -> Config:
    """A trial's settings: the fewest workers allowed, and validation in place.

    Elastic trials would take CPUs from one another; the global batches, and so the training result, do not depend on the number
    of workers. ASHA needs each score at once, so validation cannot run in the background.
    """
    config = override(config, overrides)
    return override(config, {"train.workers": config.train.fewest_workers, "evaluate.background": False})


def trial_checkpoints(config: Config, key: str, number: str) -> Store:
    return open_store(f"{config.runs_url}/{key}-{number}", config.storage)


def concurrent_trials(config: Config, resources: dict[str, float]) -> int:
    """Number of trials that the cluster's CPUs (Ray Data's included) and GPUs can run at a time; at least one."""
    workers = config.train.fewest_workers
    by_gpu = resources.get("GPU", 0) // workers or math.inf  # too few GPUs for one trial: all run on CPUs
    return int(max(1, min(resources.get("CPU", 0) // cpus_needed(config, workers), by_gpu)))


def domain(dimension: Dimension) -> Any:
    if dimension.grid:
        return tune.grid_search(list(dimension.grid))
    return tune.loguniform(*dimension.log) if dimension.log else tune.choice(list(dimension.choice or ()))


def end_trial(parent: Run, key: str, result: Any) -> Trial:
    """The result of a trial. Sends its unsent metric points and ends its MLflow run, which a trial killed by ASHA cannot do."""
    run_id, step, number = result.metrics["run_id"], int(result.metrics["step"]), result.metrics["trial_id"]
    config = override(parent.config, dict(result.config))
    stopped_early = step < config.train.steps
    run = parent._replace(config=config, checkpoints=trial_checkpoints(config, key, number), run_id=run_id)
    send_unsent(run)
    miou, caveat, evaluated = float(result.metrics["miou"]), result.metrics.get("caveat", ""), None
    if checkpoint.best(run.checkpoints):
        best, score = best_of(run)
        if config.tune.evaluate and not stopped_early:
            logger.info("trial %s  evaluates %s", number, best.url)
            evaluated = evaluate(override(config, {"evaluate.checkpoint": best.url}))
        registry.log_best(run.tracking_uri, run_id, **checkpoint_summary(best, score))
        if not miou >= score.miou:  # it is smaller or NaN
            miou, caveat = score.miou, score.caveat
    runs.finish_run(parent.tracking_uri, run_id, "KILLED" if stopped_early else "FINISHED")
    return Trial(number, dict(result.config), miou, caveat, step, stopped_early, run_id, evaluated)


class TuneScoreCallback(TuneReportCallback):
    """Does not report checkpoints without a score, such as that of a trial stopped early: Tune needs a score in each report."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if "miou" in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


class TrialLines(tune.Callback):
    """Logs a line for each result and each end of a trial."""

    def __init__(self) -> None:
        self.ended: set[str] = set()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        score = f"{result['miou']:.4f} {result.get('caveat', '')}".rstrip()
        logger.info("trial %s  step %d  mIoU %s  %s", trial.trial_id, result["step"], score, trial.config)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.add(trial.trial_id)
        logger.info("trial %s  ended at step %s", trial.trial_id, trial.last_result.get("step"))
