"""Training as the driver sees it: the TorchTrainer, its restarts, and what a finished run records."""

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.checkpoints import checkpoint
from pipeline.cluster.fit import fit
from pipeline.cluster.reserved import NamedResources, free_resources
from pipeline.cluster.task_errors import task_errors
from pipeline.config.config import Config
from pipeline.errors import RunFailed
from pipeline.evaluation.metrics import Score
from pipeline.fault_tolerance.failures import Kind, classify, root_cause
from pipeline.fault_tolerance.goodput import summary
from pipeline.fault_tolerance.interruptions import ANSWER_S, StopFlag, first_signal
from pipeline.fault_tolerance.policy import RestartPolicy
from pipeline.formatting import hide_on_screen
from pipeline.loading.feed import resumed
from pipeline.loading.ray_dataset import ResumableDataConfig, placeholder
from pipeline.model.cost import step_cost
from pipeline.reports.training import PAGE
from pipeline.tracking import runs
from pipeline.training.best import record_end
from pipeline.training.checkpointing import RunRecord
from pipeline.training.loop import train_worker
from pipeline.training.metric_logs import PICTURES, collect, send_unsent
from pipeline.training.run import Run, open_run
from pipeline.training.validation import (
    LESS_MEMORY,
    background_validation,
    pending_validations,
    validate_all_pending,
    validation_task,
)

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""Seconds between two looks whether the workers of a run that is to stop train."""
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
STOPPED = "stopped on request; run the same command to resume"


def build_trainer(run: Run, callbacks: list[Any] | None = None) -> TorchTrainer:
    """The TorchTrainer of a run; `jobs.train` and every Tune trial use it."""
    train = run.config.train
    # Ray's own list of checkpoints. Ray refuses to start if one of them was deleted or if another version wrote the list.
    run.checkpoints.delete(RAY_SNAPSHOT)
    file_system, path = run.checkpoints.arrow()
    parent, _, name = path.rstrip("/").rpartition("/")
    # Ray Train's controller and Ray Data's planner do not get the Run: to unpickle it they would import all that a driver does.
    policy = _restart_policy(run)
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": 1} if run.on_gpus else {})
    return TorchTrainer(  # type: ignore[call-arg]  # the types are those of Ray Train's first version
        partial(train_worker, run),
        scaling_config=ScalingConfig(
            num_workers=0 if run.in_process else cast(int, train.workers), use_gpu=run.on_gpus, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=file_system,
            # The restart policy limits failures, but does not see workers that could not be started: `controller_failure_limit`
            # and `run_to_end` limit these.
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=-1, controller_failure_limit=run.config.faults.max_failures
            ),
            callbacks=[cast(Any, policy), cast(Any, NamedResources(run.run_id)), *(callbacks or [])],
        ),
        datasets=None if run.in_process else {"train": placeholder()},
        dataset_config=ResumableDataConfig(partial(resumed, run.config, run.manifest, run.checkpoints)),
        validation_config=background_validation(run) if run.config.evaluate.background else None,
    )


def _restart_policy(run: Run) -> RestartPolicy:
    return RestartPolicy(run.config.faults, partial(runs.record_fault, run.tracking_uri, run.run_id))


class Outcome(NamedTuple):
    """The result of a finished run."""

    run_id: str
    tracking_uri: str
    best: checkpoint.Checkpoint
    score: Score
    seconds: float
    goodput: str
    """Where the time of all attempts went, its speed and its cost, in one line; empty if an older version trained it."""
    stop_reason: str | None
    """Why it ended before the last step; None if it did not."""
    model_url: str
    """Folder of the delivered model: `ccnet.load` reads it."""
    pictures_url: str
    """Folder of the newest pictures: first batch, curve, panels, worst images, confusion."""
    report_url: str
    """HTML page with all of it."""


def run_to_end(run: Run, callbacks: list[Any] | None = None) -> str | None:
    """Trains from the newest checkpoint on; returns why the run stopped before its end, None if it did not.

    Returns at once if its end is reached or a limit of `stop` has ended the run. Restarts a controller that dies. Raises
    RunFailed; with `train.workers = 0`, what the training raises.
    """
    failures, before, limit, run = 0, -1, run.config.faults.max_failures, run._replace(began=time.time())
    if run.in_process:
        _train_in_process(run, callbacks or [])
        return stop_reason(run)
    while not (run.done() or exhausted_budget(run)):
        free_resources(run.run_id)
        try:
            fit(build_trainer(run, callbacks))
            break
        except Exception as error:
            # Retries only what the policy cannot see: a dead controller, workers that could not start, a node that stays away.
            if classify(error).kind is not Kind.INFRASTRUCTURE:
                raise root_cause(error) from error
            step = run.first_step()
            failures = failures + 1 if step == before else 1
            before = step
            if failures > limit:
                raise RunFailed(
                    f"{root_cause(error)}\nnot retried: faults.max_failures = {limit} in a row without a checkpoint; check that "
                    "the cluster has the nodes that train.workers needs, and submit the run again: it resumes from its last "
                    "checkpoint"
                ) from error
            logger.warning("the training's controller ended at step %d or later and is restarted (%s)", step, root_cause(error))
        # The exception's frames form a cycle that holds the controller, which keeps its workers' CPUs and GPUs reserved.
        gc.collect()
    return stop_reason(run)


def _train_in_process(run: Run, callbacks: list[Any]) -> None:
    """Trains in this process. A trial is restarted as its workers would be; with `train.workers = 0`, the first error is raised.

    Raises RunFailed.
    """
    for line in ("Running in local mode", "Reported metrics: "):
        hide_on_screen("ray", line)
    policy = _restart_policy(run)
    run = run._replace(callbacks=(policy, *callbacks))
    while not (run.done() or exhausted_budget(run)):
        try:
            return fit(build_trainer(run))
        except Exception as error:
            if run.config.train.local:
                raise
            policy.after_exception(None, {0: error})
        gc.collect()  # the exception's frames form a cycle that holds the network


def exhausted_budget(run: Run) -> str | None:
    """The limit of `stop` that has ended the run early; None if none has."""
    newest = checkpoint.newest_progress(run.checkpoints)
    if newest is None:
        return None
    record = RunRecord.of(newest)
    return run.config.stop.impatient(record.since_best) or record.spent.exhausted(run.config.stop)


def stop_reason(run: Run) -> str | None:
    """Why the run ended before its last step; None if it did not."""
    newest = checkpoint.newest_progress(run.checkpoints)
    if newest is None or newest["step"] >= run.end:
        return None
    # A limit comes first: a pending validation or a changed setting may have ended the run after the recorded interruption.
    reason: str | None = exhausted_budget(run) or newest.get("interrupted")
    return reason


def validate_pending(run: Run) -> None:
    """Validates the newest checkpoint, and those of validation steps, if their score is missing."""
    newest = checkpoint.newest_progress(run.checkpoints)
    if newest and pending_validations(run, newest["step"]):
        if run.in_process:
            return validate_all_pending(run, newest["step"])
        with task_errors(LESS_MEMORY):
            ray.get(validation_task(run, newest["step"]))


@contextmanager
def stopping(flag: Any) -> Iterator[list[int]]:
    """Turns the first SIGTERM or Ctrl-C into a request to save a checkpoint and stop; the second one ends the process.

    While no worker trains, nobody would look at the request and there is nothing to save: then this sends the second one itself.
    Gives the list of the signals received, which is empty at first. A signal that this process ignores stays ignored.
    """
    left = threading.Event()

    def request_stop(number: int) -> None:
        logger.warning("stop requested: saving a checkpoint within faults.look_every steps; a second request ends at once")
        flag.request.remote(STOPPED)
        threading.Thread(target=end_unless_training, args=(number,), daemon=True).start()

    def end_unless_training(number: int) -> None:
        while not left.wait(LOOK_S):
            with suppress(ray.exceptions.RayError):  # no answer: the next look may have one
                if not ray.get(flag.is_training.remote(), timeout=ANSWER_S) and not left.is_set():
                    os.kill(os.getpid(), number)
                    return

    try:
        with first_signal(request_stop) as received:
            yield received
    finally:
        left.set()


def train(config: Config) -> Outcome:
    """Trains as configured, or resumes the run of the same configuration; records everything in MLflow."""
    started = time.monotonic()
    with open_run(config) as run:
        logger.info("run %s  MLflow run %s", config.run_key, run.run_id)
        return _train(run, started)


def _train(run: Run, started: float) -> Outcome:
    reason: str | None = None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    flag = cast(Any, StopFlag).options(scheduling_strategy=here).remote()
    # A second or two, before the training: then a fault in it does not end one that is complete.
    flops = step_cost(run.config, len(run.manifest.class_names), images=1).flops
    run = run._replace(stop_flag=flag, flops=flops)
    try:
        send_unsent(run)  # of an earlier attempt
        with stopping(flag) as received:
            reason = run_to_end(run)
        if reason == STOPPED:
            send_unsent(run)
            raise KeyboardInterrupt() if received == [signal.SIGINT] else SystemExit(143)  # 128 + SIGTERM
        validate_pending(run)
        collect(run)
        end = record_end(run, reason)
    except BaseException as error:
        end_run(run, error, reason)
        raise
    return Outcome(
        run_id=run.run_id,
        tracking_uri=run.tracking_uri,
        best=end.best,
        score=end.score,
        seconds=time.monotonic() - started,
        goodput=summary(end.spent),
        stop_reason=reason,
        model_url=end.model_url,
        pictures_url=run.checkpoints.url(PICTURES),
        report_url=run.checkpoints.url(PAGE),
    )


def end_run(run: Run, error: BaseException, reason: str | None = None) -> None:
    """Marks the run and its children as ended by this exception; only warns if MLflow fails, so as not to hide it.

    `reason`: why the run stopped early. If another process has taken the run over, its status is no longer ours.
    """
    status: Literal["KILLED", "FAILED"] = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
    reason = STOPPED if status == "KILLED" else reason
    try:
        if run.claim.lost():
            return
        runs.end_children(run.tracking_uri, run.run_id, status)
        runs.finish_run(run.tracking_uri, run.run_id, status, reason)
    except Exception as fault:
        logger.warning("the run is still marked RUNNING in MLflow: %s", fault)
