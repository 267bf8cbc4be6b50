"""Searches settings such as learning rate, crop size and R; each trial runs the same training function as `jobs.train`."""

import logging
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.errors import ConfigError
from pipeline.fault_tolerance.interruptions import StopFlag
from pipeline.storage.store import open_store
from pipeline.training.run import Run, open_run
from pipeline.training.train import end_run
from pipeline.tuning.best import record_end
from pipeline.tuning.engine import Need, concurrent_trials, run_stages, shared_by
from pipeline.tuning.forecast import Forecast, measured
from pipeline.tuning.journal import Journal
from pipeline.tuning.points import export_study, num_points
from pipeline.tuning.progress import Progress, open_journal, plan_of
from pipeline.tuning.report import show
from pipeline.tuning.result import SearchResult

logger = logging.getLogger(__name__)


def search(config: Config) -> SearchResult:
    """Runs `tune.trials` trials, or resumes the search of the same configuration and space; a larger number extends it.

    MLflow holds one parent run and a child for each trial. Raises ConfigError for an empty space, and LeaseError if another
    process runs this search.
    """
    if not config.tune.space:
        raise ConfigError(["tune.space: missing; name at least one setting, such as train.learning_rate: {log: [0.003, 0.1]}"])
    key = config.search_key
    with open_run(config, run_key=key) as parent:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        flag = cast(Any, StopFlag).options(scheduling_strategy=here).remote()
        try:
            progress = _opened(parent._replace(stop_flag=flag), key)
            return record_end(progress, run_stages(progress, parent.checkpoints))
        except BaseException as error:
            end_run(parent, error)
            raise


def export(config: Config, path: Path) -> int:
    """Writes the trials of a search as an Optuna study into a new file; returns their number.

    Raises ConfigError if there is no such search, or if the file exists.
    """
    journal = Journal(open_store(f"{config.runs_url}/{config.search_key}", config.storage))
    if not journal.trials:
        raise ConfigError([f"{journal.store.url('')}: has no search with these settings; start it without --export"])
    export_study(config, list(journal.trials.values()), path, config.search_key)
    return len(journal.points())


def _opened(parent: Run, key: str) -> Progress:
    """The search as its folder has it, or a new one."""
    journal, config, need = open_journal(parent), parent.config, Need.of(parent.config, parent.on_gpus)
    places = concurrent_trials(config, need, ray.cluster_resources())
    on_node, threads = shared_by(places, need, ray.nodes())
    # A search keeps the rule and the threads with which it began, also on a cluster of another size.
    waits = bool(journal.facts.get("rungs_wait", 2 * places <= num_points(config)))
    threads = config.train.threads or int(journal.facts.get("threads", threads))
    journal.describe(key=key, seed=config.seed, settings=config.record()["tune"], rungs_wait=waits, threads=threads)
    parent = parent._replace(config=override(config, {"train.threads": threads}))
    plan = plan_of(config, waits)
    progress = Progress(parent, key, journal, plan, show)
    progress.show()
    done = sum(trial.state in ("complete", "stopped") for trial in journal.trials.values())
    logger.info(
        "search %s  MLflow run %s\n%d of %d trials have ended, %d at a time (each takes %s, torch threads: %d)\n"
        "compared at step%s %s",
        key, parent.run_id, done, plan.trials, places, need, threads,
        "s" if len(plan.rungs) > 1 else "", ", ".join(map(str, (*plan.rungs, plan.steps))),
    )  # fmt: skip
    if progress.next_stage(()):
        progress.forecast = _forecast(progress, need, places, on_node)
        if expected := progress.expected():
            logger.info("%s", expected)
    return progress


def _forecast(progress: Progress, need: Need, places: int, on_node: int) -> Forecast | None:
    """The forecast from what is measured now: a search may resume on another cluster."""
    speed = measured(progress.parent, need.cpus, need.in_process, on_node)
    return Forecast(progress.parent, speed, need.in_process, places) if speed else None
