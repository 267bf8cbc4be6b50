"""A training from the driver's side: the TorchTrainer, what it is told to survive, and what a run leaves behind."""

import gc
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Literal, NamedTuple, cast

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.errors import CheckpointError, RunFailed
from pipeline.evaluation.metrics import Score
from pipeline.fault_tolerance.failures import Kind, classify, root_cause
from pipeline.fault_tolerance.interruptions import StopFlag
from pipeline.fault_tolerance.policy import RestartPolicy
from pipeline.loading.feed import resumed
from pipeline.loading.ray_dataset import ResumableDataConfig, placeholder
from pipeline.tracking import registry, runs
from pipeline.tracking.client import reached
from pipeline.tracking.metric_log import MetricLog
from pipeline.training.checkpointing import RunRecord
from pipeline.training.loop import train_worker
from pipeline.training.run import Run, open_run
from pipeline.training.validation import background_validation, pending_validations, validation_task

logger = logging.getLogger(__name__)

RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
STOPPED = "the job was told to stop; submitted again it goes on from here"


def build_trainer(run: Run, callbacks: list[Any] | None = None) -> TorchTrainer:
    """The TorchTrainer of a job; `jobs.train` and every Tune trial run this one."""
    train = run.config.train
    # Ray's own list of checkpoints: it refuses to start when one of them was deleted, or Ray is another version by now.
    run.checkpoints.delete(RAY_SNAPSHOT)
    file_system, path = run.checkpoints.arrow()
    parent, _, name = path.rstrip("/").rpartition("/")
    # What the controller and the planner of the data unpickle is kept small: a job would bring all that a driver imports.
    judge = RestartPolicy(run.config.faults, partial(runs.record_fault, run.tracking_uri, run.run_id))
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": 1} if run.on_gpus else {})
    return TorchTrainer(  # type: ignore[call-arg]  # the types are those of Ray Train's first version
        partial(train_worker, run),
        scaling_config=ScalingConfig(num_workers=cast(int, train.workers), use_gpu=run.on_gpus, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=file_system,
            # How often is the judge's to say; workers that could not even be started are not shown to it (run_job).
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=-1, controller_failure_limit=run.config.faults.max_failures
            ),
            callbacks=[cast(Any, judge), *(callbacks or [])],
        ),
        datasets={"train": placeholder()},
        dataset_config=ResumableDataConfig(partial(resumed, run.config, run.manifest, run.checkpoints)),
        validation_config=background_validation(run) if run.config.evaluate.background else None,
    )


class Outcome(NamedTuple):
    """What a finished run leaves."""

    run_id: str
    tracking_uri: str
    best: checkpoint.Checkpoint
    score: Score
    seconds: float
    stop_reason: str | None
    """Why it ended before the last step; None when it did not."""


def run_job(run: Run) -> str | None:
    """Trains from the newest checkpoint on; returns why it left off before the last step, None when it did not.

    Returns at once when the last step is done or the run was ended early for good. A controller that dies is started again.
    Raises RunFailed.
    """
    failures, before, limit = 0, -1, run.config.faults.max_failures
    while not (run.done() or exhausted_budget(run)):
        try:
            build_trainer(run).fit()
            break
        except Exception as error:
            # Only what no judge sees: the controller's own death, a worker's before it has begun, a node that does not come back.
            if classify(error).kind is not Kind.INFRASTRUCTURE:
                raise root_cause(error) from error
            step = run.first_step()
            failures = failures + 1 if step == before else 1
            before = step
            if failures > limit:
                raise RunFailed(
                    f"{root_cause(error)}\nnot retried: faults.max_failures = {limit} in a row without a checkpoint; see that "
                    "the cluster has the nodes that train.workers needs, and submit the run again: it resumes from its last "
                    "checkpoint"
                ) from error
            logger.warning(
                "the training's controller ended at step %d or later: it is started again (%s)", step, root_cause(error)
            )
        # The frames of the exception hold one another and the controller, which would keep its workers' room from the next one.
        gc.collect()
    return stop_reason(run)


def exhausted_budget(run: Run) -> str | None:
    """Which limit of `stop` ended the run early for good; None when none did."""
    newest = checkpoint.newest_progress(run.checkpoints)
    if newest is None:
        return None
    record = RunRecord.of(newest)
    return run.config.stop.impatient(record.since_best) or record.spent.exhausted(run.config.stop)


def stop_reason(run: Run) -> str | None:
    """Why the run ended before its last step."""
    newest = checkpoint.newest_progress(run.checkpoints)
    if newest is None or newest["step"] >= run.config.train.steps:
        return None
    # What it was interrupted for is over when a validation that was owed, or another setting, ended it since.
    reason: str | None = exhausted_budget(run) or newest.get("interrupted")
    return reason


def validate_pending(run: Run) -> None:
    """Validates the newest checkpoint, and those of validation steps, where that has not been done."""
    newest = checkpoint.newest_progress(run.checkpoints)
    if newest and pending_validations(run, newest["step"]):
        ray.get(validation_task(run, newest["step"]))


@contextmanager
def stopping(flag: Any) -> Iterator[None]:
    """Turns the first SIGTERM into a request to the workers to leave off with a checkpoint; the second one ends the process."""

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        logger.warning("told to stop: the workers leave off at their next look, with a checkpoint")
        flag.request.remote(STOPPED)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def best_of(run: Run) -> tuple[checkpoint.Checkpoint, Score]:
    """The run's best checkpoint and its score."""
    best = checkpoint.load_best(run.checkpoints)
    if best is None:
        raise CheckpointError(
            f"{run.checkpoints.url('')}: the run ended without a validated checkpoint: submit it again, its end validates it"
        )
    return best, Score(**best.progress["score"])


def train(config: Config) -> Outcome:
    """Trains as configured, or goes on where the same configuration stopped; records everything in MLflow."""
    started = time.monotonic()
    run = open_run(config)
    logger.info("run %s  MLflow run %s", config.run_key, run.run_id)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    flag = cast(Any, StopFlag).options(scheduling_strategy=here).remote()
    run = run._replace(stop_flag=flag)
    try:
        with stopping(flag):
            reason = run_job(run)
        MetricLog(run.tracking_uri, run.run_id).close()  # sends what an earlier attempt had to leave behind
        if reason == STOPPED:
            raise SystemExit(143)
        validate_pending(run)
        best, score = best_of(run)
        with reached(run.tracking_uri):
            record_best(run, best, score)
            runs.finish_run(run.tracking_uri, run.run_id, "FINISHED", reason)
    except BaseException as error:
        end_run(run, error)
        raise
    return Outcome(run.run_id, run.tracking_uri, best, score, time.monotonic() - started, reason)


def end_run(run: Run, error: BaseException) -> None:
    """Marks the run and its children as ended by this exception, which a tracking server that is down must not hide."""
    status: Literal["KILLED", "FAILED"] = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
    try:
        runs.end_children(run.tracking_uri, run.run_id, status)
        runs.finish_run(run.tracking_uri, run.run_id, status)
    except Exception as fault:
        logger.warning("the run in MLflow still says RUNNING: %s", fault)


def record_best(run: Run, best: checkpoint.Checkpoint, score: Score) -> None:
    """Puts the best checkpoint into the run, by reference, and into the registry when the configuration names one."""
    facts = checkpoint_summary(best, score)
    registry.log_best(run.tracking_uri, run.run_id, **facts)
    if run.config.tracking.register_as:
        del facts["step"]
        registry.register(run.tracking_uri, run.run_id, run.config.tracking.register_as, **facts)


def checkpoint_summary(best: checkpoint.Checkpoint, score: Score) -> dict[str, Any]:
    """What MLflow is told of a checkpoint."""
    protocol = score.protocol | {"checkpoint_sha256": best.sha256}
    return {"checkpoint_url": best.url, "sha256": best.sha256, "step": best.step, "miou": score.miou, "protocol": protocol}
