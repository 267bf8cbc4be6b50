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
from pipeline.fault_tolerance.failures import Kind, cause, fault_of
from pipeline.fault_tolerance.interruptions import StopFlag
from pipeline.fault_tolerance.policy import Judge
from pipeline.loading.feed import resumed
from pipeline.loading.ray_dataset import PlannedData, placeholder
from pipeline.tracking import registry, runs
from pipeline.tracking.client import reached
from pipeline.tracking.metric_log import MetricLog
from pipeline.training.checkpointing import Record
from pipeline.training.loop import train_worker
from pipeline.training.run import Job, open_job
from pipeline.training.validation import apart, owed, validation_task

logger = logging.getLogger(__name__)

RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
STOPPED = "the job was told to stop; submitted again it goes on from here"


def build_trainer(job: Job, callbacks: list[Any] | None = None) -> TorchTrainer:
    """The TorchTrainer of a job; `jobs.train` and every Tune trial run this one."""
    train = job.config.train
    # Ray's own list of checkpoints: it refuses to start when one of them was deleted, or Ray is another version by now.
    job.checkpoints.delete(RAY_SNAPSHOT)
    file_system, path = job.checkpoints.arrow()
    parent, _, name = path.rstrip("/").rpartition("/")
    # What the controller and the planner of the data unpickle is kept small: a job would bring all that a driver imports.
    judge = Judge(job.config.faults, partial(runs.record_fault, job.tracking_uri, job.run_id))
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": 1} if job.on_gpus else {})
    return TorchTrainer(  # type: ignore[call-arg]  # the types are those of Ray Train's first version
        partial(train_worker, job),
        scaling_config=ScalingConfig(num_workers=cast(int, train.workers), use_gpu=job.on_gpus, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=file_system,
            # How often is the judge's to say; workers that could not even be started are not shown to it (run_job).
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=-1, controller_failure_limit=job.config.faults.max_failures
            ),
            callbacks=[cast(Any, judge), *(callbacks or [])],
        ),
        datasets={"train": placeholder()},
        dataset_config=PlannedData(partial(resumed, job.config, job.manifest, job.checkpoints)),
        validation_config=apart(job) if job.config.evaluate.apart else None,
    )


class Outcome(NamedTuple):
    """What a finished run leaves."""

    run_id: str
    best: checkpoint.Checkpoint
    score: Score
    seconds: float
    left_off: str | None
    """Why it ended before the last step; None when it did not."""


def run_job(job: Job) -> str | None:
    """Trains from the newest checkpoint on; returns why it left off before the last step, None when it did not.

    Returns at once when the last step is done or the run was ended early for good. A controller that dies is started again.
    Raises RunFailed.
    """
    failures, before, limit = 0, -1, job.config.faults.max_failures
    while not (job.done() or over(job)):
        try:
            build_trainer(job).fit()
            break
        except Exception as error:
            # Only what no judge sees: the controller's own death, a worker's before it has begun, a node that does not come back.
            if fault_of(error).kind is not Kind.INFRASTRUCTURE:
                raise cause(error) from error
            step = job.first_step()
            failures = failures + 1 if step == before else 1
            before = step
            if failures > limit:
                raise RunFailed(
                    f"{cause(error)}\nnot tried again: faults.max_failures = {limit} in a row without a checkpoint; see that the "
                    "cluster has the nodes that train.workers needs and submit the run again: it goes on from its last checkpoint"
                ) from error
            logger.warning("the training's controller ended at step %d or later: it is started again (%s)", step, cause(error))
        # The frames of the exception hold one another and the controller, which would keep its workers' room from the next one.
        gc.collect()
    return left_off(job)


def over(job: Job) -> str | None:
    """Which limit of `stop` ended the run early for good; None when none did."""
    newest = checkpoint.newest_progress(job.checkpoints)
    if newest is None:
        return None
    record = Record.of(newest)
    return job.config.stop.impatient(record.since_best) or record.spent.over(job.config.stop)


def left_off(job: Job) -> str | None:
    """Why the run ended before its last step."""
    newest = checkpoint.newest_progress(job.checkpoints)
    if newest is None or newest["step"] >= job.config.train.steps:
        return None
    # What it was interrupted for is over when a validation that was owed, or another setting, ended it since.
    reason: str | None = over(job) or newest.get("interrupted")
    return reason


def make_up(job: Job) -> None:
    """Validates the newest checkpoint, and those of validation steps, where that has not been done."""
    newest = checkpoint.newest_progress(job.checkpoints)
    if newest and owed(job, newest["step"]):
        ray.get(validation_task(job, newest["step"]))


@contextmanager
def stopping(flag: Any) -> Iterator[None]:
    """Turns the first SIGTERM into a request to the workers to leave off with a checkpoint; the second one ends the process."""

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        logger.warning("told to stop: the workers leave off at their next look, with a checkpoint")
        flag.put_up.remote(STOPPED)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def best_of(job: Job) -> tuple[checkpoint.Checkpoint, Score]:
    """The run's best checkpoint and its score."""
    best = checkpoint.load_best(job.checkpoints)
    if best is None:
        raise CheckpointError(
            f"{job.checkpoints.url('')}: the run ended without a validated checkpoint: submit it again, its end validates it"
        )
    return best, Score(**best.progress["score"])


def train(config: Config) -> Outcome:
    """Trains as configured, or goes on where the same configuration stopped; records everything in MLflow."""
    started = time.monotonic()
    job = open_job(config)
    logger.info("run %s  MLflow run %s", config.run_key, job.run_id)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    flag = cast(Any, StopFlag).options(scheduling_strategy=here).remote()
    job = job._replace(stop_flag=flag)
    try:
        with stopping(flag):
            reason = run_job(job)
        MetricLog(job.tracking_uri, job.run_id).close()  # sends what an earlier attempt had to leave behind
        if reason == STOPPED:
            raise SystemExit(143)
        make_up(job)
        best, score = best_of(job)
        with reached(job.tracking_uri):
            record_best(job, best, score)
            runs.finish_run(job.tracking_uri, job.run_id, "FINISHED", reason)
    except BaseException as error:
        end_run(job, error)
        raise
    return Outcome(job.run_id, best, score, time.monotonic() - started, reason)


def end_run(job: Job, error: BaseException) -> None:
    """Marks the run and its children as ended by this exception, which a tracking server that is down must not hide."""
    status: Literal["KILLED", "FAILED"] = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
    try:
        runs.end_children(job.tracking_uri, job.run_id, status)
        runs.finish_run(job.tracking_uri, job.run_id, status)
    except Exception as fault:
        logger.warning("the run in MLflow still says RUNNING: %s", fault)


def record_best(job: Job, best: checkpoint.Checkpoint, score: Score) -> None:
    """Puts the best checkpoint into the run, by reference, and into the registry when the configuration names one."""
    facts = best_facts(best, score)
    registry.log_best(job.tracking_uri, job.run_id, **facts)
    if job.config.tracking.register_as:
        del facts["step"]
        registry.register(job.tracking_uri, job.run_id, job.config.tracking.register_as, **facts)


def best_facts(best: checkpoint.Checkpoint, score: Score) -> dict[str, Any]:
    """What MLflow is told of a checkpoint."""
    protocol = score.protocol | {"checkpoint_sha256": best.sha256}
    return {"checkpoint_url": best.url, "sha256": best.sha256, "step": best.step, "miou": score.miou, "protocol": protocol}
