"""One stage of one trial: a training like that of `jobs.train`, in a process that is kept for the next stage."""

import ctypes
import gc
import json
import logging
import queue
import sys
import threading
from typing import Any

from ray.train import UserCallback
from ray.tune import Trainable
from ray.util.queue import Queue

from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.data.manifest import data_set
from pipeline.errors import ClusterError, StorageError, TrackingError
from pipeline.evaluation.evaluate import evaluate
from pipeline.fault_tolerance.failures import Kind, classify, root_cause
from pipeline.storage.store import Store, open_store
from pipeline.tracking import registry, runs
from pipeline.tracking.provenance import environment
from pipeline.training.best import best_of, checkpoint_summary, draw_curve
from pipeline.training.checkpointing import RunRecord
from pipeline.training.metric_logs import confirm, send_unsent
from pipeline.training.run import Run
from pipeline.training.train import STOPPED, run_to_end, validate_pending

logger = logging.getLogger(__name__)

ENDED = "stage_ended"
"""Key of the last report of a stage: its outcome as JSON, because Tune flattens what is nested."""
AGAIN = (TrackingError, StorageError, ClusterError)
"""What a later attempt may not meet again, as MLflow, the bucket or the cluster may be away for a while."""


class StageProcess(Trainable):
    """Trains a trial to the end of a stage; each `step` gives Tune a validation, and the last one the outcome.

    A class, because Ray Train refuses to train in the process of a function that Tune calls.
    """

    reports: Any = None
    """Queue of what Tune gets; None before a stage starts."""

    def setup(self, config: dict[str, Any], parent: Run, key: str) -> None:  # type: ignore[override]
        """`config`: `name`, `until` and `overrides` of the trial. `key`: that of the search."""
        self.stage, self.parent, self.key = config, parent, key

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next stage."""
        self.stage, self.reports = new_config, None
        return True

    def step(self) -> dict[str, Any]:
        """Waits for the next validation or the outcome."""
        if self.reports is None:
            in_process = trains_in_process(self.parent.config, self.parent.on_gpus)
            # The controller of workers is another process.
            self.reports = queue.Queue() if in_process else Queue(actor_options={"num_cpus": 0})
            threading.Thread(target=self._run, args=(self.reports,), daemon=True).start()
        report: dict[str, Any] = self.reports.get()
        if ENDED in report and isinstance(self.reports, Queue):
            self.reports.shutdown(force=True)
        return report

    def _run(self, reports: Any) -> None:
        logging.basicConfig(format=f"trial {self.stage['name']}  %(message)s", force=True)
        outcome = run_stage(self.stage, self.parent, self.key, ScoreCallback(reports))
        _give_back_memory()
        reports.put({ENDED: json.dumps(outcome), "done": True})


def _give_back_memory() -> None:
    """Frees what a stage leaves in a process that is kept.

    With `gc.collect` alone the process of ten short stages grew from 0.9 to 2.4 GiB; with `malloc_trim` too it stayed at 1.0.
    """
    gc.collect()
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def run_stage(stage: dict[str, Any], parent: Run, key: str, callback: UserCallback) -> dict[str, Any]:
    """Trains a trial to the end of a stage and returns the outcome.

    A failure is an outcome too: `fault`, and `again`, whether another attempt may succeed.
    """
    try:
        run = trial_run(parent, key, stage["name"], stage["overrides"], stage["until"])
        return _trained(run, f"trial {stage['name']}", callback)
    except BaseException as error:  # nothing else ends the wait for it
        return {"fault": str(root_cause(error)) or type(error).__name__, "again": _may_succeed(error)}


def _trained(run: Run, show: str, callback: UserCallback) -> dict[str, Any]:
    """What the driver learns of a stage that ended: its step and score, the best score, why it ended early."""
    send_unsent(run)  # of an earlier attempt
    reason = run_to_end(run, [callback])
    if reason != STOPPED:
        validate_pending(run)
    newest = checkpoint.newest_progress(run.checkpoints)
    if newest is None or not checkpoint.best(run.checkpoints):  # stopped before the first validation
        send_unsent(run)
        return {"step": newest["step"] if newest else 0, "miou": None, "run_id": run.run_id, "reason": reason}
    outcome: dict[str, Any] = {"step": newest["step"], "miou": checkpoint.miou(newest), "run_id": run.run_id, "reason": reason}
    outcome["trained_s"] = RunRecord.of(newest).spent.hours * 3600
    best, score = best_of(run)
    registry.log_best(run.tracking_uri, run.run_id, **checkpoint_summary(best, score))
    outcome |= {"best_miou": score.miou, "caveat": score.caveat}
    if run.config.tune.evaluate and newest["step"] >= run.config.train.steps:
        logger.info("evaluates %s", best.url)
        # Here, where the trial trains: its CPUs are not free for a task.
        here = {"train.workers": 0} if run.in_process else {}
        outcome["score"] = evaluate(override(run.config, here | {"evaluate.checkpoint": best.url})).score._asdict()
    if left := send_unsent(run, {best.step: score.metrics()}):
        raise TrackingError(f"MLflow has not taken {left} of the metric points and pictures of {show}")
    draw_curve(run)
    confirm(run)
    return outcome


def _may_succeed(error: BaseException) -> bool:
    """Whether another attempt may succeed: what was missing may be back by then."""
    if isinstance(error, AGAIN):
        return True
    return any(classify(link).kind in (Kind.INFRASTRUCTURE, Kind.MOVED) for link in (error, error.__cause__) if link)


def trial_run(parent: Run, key: str, name: str, overrides: dict[str, Any], until: int) -> Run:
    """The run of a trial: its own folder, and an MLflow run that is a child of the search's. Both are found again by the name."""
    config = trial_config(parent.config, overrides)
    run_id = runs.open_mlflow_run(
        config,
        environment=environment(),
        run_key=f"{key}-{name}",
        parent_run_id=parent.run_id,
        run_name=f"{name} of {key}",  # the number first: lists cut long names
        class_names=parent.manifest.class_names,
        data=data_set(config, parent.manifest),
    )
    store, last = trial_store(config, key, name), until >= config.train.steps
    return parent._replace(
        config=config,
        checkpoints=store,
        run_id=run_id,
        until=None if last else until,
        in_process=trains_in_process(config, parent.on_gpus),
    )


def trial_config(config: Config, overrides: dict[str, Any]) -> Config:
    """A trial's settings: the fewest workers allowed, and validation in place.

    Elastic trials would take CPUs from one another; the global batches, and so the training result, do not depend on the number
    of workers. A rung needs each score at once, so validation cannot run in the background.
    """
    config = override(config, overrides)
    return override(config, {"train.workers": max(1, config.train.fewest_workers), "evaluate.background": False})


def trains_in_process(config: Config, on_gpus: bool) -> bool:
    """Whether a trial trains in its own process, which is kept for the next one: with one worker, on a CPU.

    A start of workers takes 20 to 40 s there. With a GPU, tasks make the data while it computes.
    """
    return config.train.fewest_workers == 1 and not on_gpus


def trial_store(config: Config, key: str, name: str) -> Store:
    return open_store(f"{config.runs_url}/{key}-{name}", config.storage)


class ScoreCallback(UserCallback):
    """Puts validations into a queue, not the checkpoints between them."""

    def __init__(self, reports: Any) -> None:
        self.reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if "miou" in metrics[0]:
            self.reports.put(metrics[0])
