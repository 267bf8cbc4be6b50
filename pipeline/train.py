"""The training loop of one worker, and the TorchTrainer around it."""

import logging
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ccnet.optim import poly_learning_rate
from pipeline import checkpoint, cluster, evaluate, figures, panels, tracking, workers
from pipeline.config import Config
from pipeline.datasets import TrainingBatch, data_config, evaluation_samples, planned_batches, resumable
from pipeline.feed import Feed
from pipeline.job import Job, open_job
from pipeline.learner import Learner
from pipeline.plan import evaluation_share
from pipeline.progress import Progress, show_own_lines
from pipeline.score import Score
from pipeline.spool import MetricLog
from pipeline.storage import Store
from pipeline.watchdog import Watchdog, stall_reason

logger = logging.getLogger(__name__)


def build_trainer(job: Job, callbacks: list[Any] | None = None) -> TorchTrainer:
    """The TorchTrainer of a job; `jobs.train` and every Tune trial run this one."""
    train = job.config.train
    file_system, path = job.checkpoints.arrow()
    parent, _, name = path.rstrip("/").rpartition("/")
    use_gpu = cluster.gpus_for(train.workers)
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": 1} if use_gpu else {})
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=train.workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=file_system,
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=train.keep_checkpoints + 1, checkpoint_score_attribute="miou", checkpoint_score_order="max"
            ),
            callbacks=callbacks or [],
        ),
        datasets={"train": resumable(job.feed)},
        dataset_config=data_config(),
    )


def train_worker(settings: dict[str, Any]) -> None:
    """One DDP worker: batches in plan order, a step each, validation and a checkpoint every `validate_every` steps."""
    job: Job = settings["job"]
    train = job.config.train
    torch.set_num_threads(workers.num_threads(ray.train.get_context().get_local_world_size()))
    show_own_lines(logging.INFO if workers.rank() == 0 else logging.WARNING)
    log = MetricLog(job.tracking_uri, job.run_id) if workers.rank() == 0 else None
    progress = Progress(train.steps, train.global_batch)
    learner, batches, replaced = _start(job)
    try:
        for step, image, label, replaced_now in progress.timed(batches):
            learning_rate = poly_learning_rate(train.learning_rate, step, train.steps, train.power, train.warmup_steps)
            losses = learner.step(image, label, step, learning_rate)
            progress.step_done()
            done = step + 1
            replaced += replaced_now
            logs, validates = (done % every == 0 or done == train.steps for every in (train.log_every, train.validate_every))
            total = _replaced_in_all(job.config, replaced, learner.device) if logs or validates else 0
            if log and logs:
                points, text = progress.flush(done)
                loss, *terms = ((name, float(value)) for name, value in losses.items())
                points |= {"train/loss": loss[1], "train/learning_rate": learning_rate}
                points |= {"data/replaced_samples": total} if job.config.data.max_skipped else {}
                log.metrics(points | {f"train/loss_{name}": value for name, value in terms}, done)
                logger.info("step %d/%d  loss %.4f  %s", done, train.steps, loss[1], text)
            if validates:
                _validate_and_save(job, learner, done, total, log)
    finally:
        if log and (unsent := log.close(timeout_s=30)):
            logger.warning("%d metric points wait in the spool; submit the run again when MLflow answers", unsent)


def _start(job: Job) -> tuple[Learner, Iterator[TrainingBatch], int]:
    """The learner as it was when the feed's first step began, the batches from there, and this rank's share of the samples
    replaced before."""
    train = job.config.train
    shard = ray.train.get_dataset_shard("train")
    batch = train.global_batch // train.workers
    rows = iter(shard.iter_batches(batch_size=batch, batch_format="numpy", prefetch_batches=2))
    plan = Feed(job.config, job.manifest, 0).plan
    batches = planned_batches(rows, plan, steps=train.steps, rank=workers.rank(), workers=train.workers)
    watchdog = Watchdog(job.config.data.stall_s, partial(stall_reason, job.config, job.manifest))
    batches = watchdog.watched(batches)
    learner = Learner(job.config, len(job.manifest.class_names), ray.train.torch.get_device())
    started = time.monotonic()
    first, replaced = next(batches), 0
    if first.step:
        found = checkpoint.load(job.checkpoints, checkpoint.folder_name(first.step))
        checkpoint.restore(found, learner.net, learner.optimizer)
        logger.info("resumed at step %d from %s", found.step, found.url)
        replaced = found.progress.get("replaced", 0) if workers.rank() == 0 else 0
    learner.distribute()
    logger.info("first batch after %.1f s", time.monotonic() - started)
    return learner, _chain(first, batches), replaced


def _chain(first: TrainingBatch, rest: Iterator[TrainingBatch]) -> Iterator[TrainingBatch]:
    yield first
    yield from rest


def _replaced_in_all(config: Config, replaced: int, device: torch.device) -> int:
    """Replaced samples of all workers in this run. Raises RuntimeError past `data.max_skipped`."""
    if not config.data.max_skipped:  # the first one that cannot be read has stopped the feed
        return 0
    total = int(workers.sum_over_workers(torch.tensor(replaced, device=device)))
    if total > config.data.max_skipped:
        raise RuntimeError(
            f"{total} training samples could not be read and were replaced, data.max_skipped = {config.data.max_skipped}: the "
            "log names them; mend the objects and submit the run again"
        )
    return total


def _validate_and_save(job: Job, learner: Learner, step: int, replaced: int, log: MetricLog | None) -> None:
    """Scores the validation split over all workers, logs it, and reports it with a checkpoint."""
    started = time.monotonic()
    score = _validate(job, learner)
    metrics = {"step": step, "miou": score.miou, "num_images": score.num_images, "run_id": job.run_id}
    if log is None:
        ray.train.report(
            metrics, checkpoint_dir_name=checkpoint.folder_name(step), checkpoint_upload_mode=CheckpointUploadMode.ASYNC
        )
        return
    log.metrics(score.metrics(), step)
    log.picture("confusion_matrix", step, figures.confusion_picture(score.matrix.counts.numpy(), score.class_names))
    for name, picture in panels.of_validation(job, learner).items():
        log.picture(name, step, picture)
    folder = Path(tempfile.mkdtemp(prefix="ccnet-checkpoint-"))
    progress = {"step": step, "replaced": replaced, "run_key": job.config.run_key, "run_id": job.run_id, "model": learner.model,
                "metrics": metrics, "score": score._asdict(), "config": job.config.record()}  # fmt: skip
    checkpoint.save(folder, learner.net, learner.optimizer, progress)
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_dir_name=checkpoint.folder_name(step),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=partial(_upload, job.checkpoints),
    )
    logger.info("step %d/%d  val mIoU %.4f on %d images  (%.1f s)", step, job.config.train.steps, score.miou, score.num_images,
                time.monotonic() - started)  # fmt: skip


def _validate(job: Job, learner: Learner) -> Score:
    indices = evaluation_share(job.manifest.num_images("val"), workers.rank(), workers.world_size())
    samples = evaluation_samples(job.config, job.manifest, "val", indices, job.config.evaluate.scale)
    counts, num_images = evaluate.evaluate_samples(learner.net, samples, len(job.manifest.class_names), learner.device)
    return evaluate.reduced_score(
        counts, num_images, job.manifest, "val", evaluate.describe(job.config, job.manifest), learner.device
    )


def _upload(store: Store, local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Ray Train's upload, by our own commit order: files, read-back, manifest last."""
    checkpoint.upload(Path(local.path), store, name)
    file_system, path = store.arrow()
    return ray.train.Checkpoint(path=f"{path.rstrip('/')}/{name}", filesystem=file_system)


class Outcome(NamedTuple):
    """What a finished run leaves."""

    run_id: str
    best: checkpoint.Checkpoint
    score: Score
    seconds: float


def run_job(job: Job) -> None:
    """Trains to the last step, from the newest checkpoint on; returns at once when that step is done."""
    if job.first_step() < job.config.train.steps:
        build_trainer(job).fit()


def best_of(job: Job) -> tuple[checkpoint.Checkpoint, Score]:
    """The run's best checkpoint and its score."""
    name = checkpoint.best(job.checkpoints)
    if name is None:
        raise checkpoint.CheckpointError(f"{job.checkpoints.url('')}: the run ended without a checkpoint")
    best = checkpoint.load(job.checkpoints, name, with_optimizer=False)
    return best, Score(**best.progress["score"])


def train(config: Config) -> Outcome:
    """Trains as configured, or goes on where the same configuration stopped; records everything in MLflow."""
    started = time.monotonic()
    job = open_job(config)
    logger.info("run %s  MLflow run %s", config.run_key, job.run_id)
    try:
        run_job(job)
        MetricLog(job.tracking_uri, job.run_id).close()  # sends what an earlier attempt had to leave behind
        best, score = best_of(job)
        record_best(job, best, score)
    except BaseException as error:
        end_run(job, error)
        raise
    tracking.finish_run(job.tracking_uri, job.run_id, "FINISHED")
    return Outcome(job.run_id, best, score, time.monotonic() - started)


def end_run(job: Job, error: BaseException) -> None:
    """Marks the run and its children as ended by this exception, which a tracking server that is down must not hide."""
    status: Literal["KILLED", "FAILED"] = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
    try:
        tracking.end_children(job.tracking_uri, job.run_id, status)
        tracking.finish_run(job.tracking_uri, job.run_id, status)
    except Exception as fault:
        logger.warning("the run in MLflow still says RUNNING: %s", fault)


def record_best(job: Job, best: checkpoint.Checkpoint, score: Score) -> None:
    """Puts the best checkpoint into the run, by reference, and into the registry when the configuration names one."""
    facts = best_facts(best, score)
    tracking.log_best(job.tracking_uri, job.run_id, **facts)
    if job.config.tracking.register_as:
        del facts["step"]
        tracking.register(job.tracking_uri, job.run_id, job.config.tracking.register_as, **facts)


def best_facts(best: checkpoint.Checkpoint, score: Score) -> dict[str, Any]:
    """What MLflow is told of a checkpoint."""
    protocol = score.protocol | {"checkpoint_sha256": best.sha256}
    return {"checkpoint_url": best.url, "sha256": best.sha256, "step": best.step, "miou": score.miou, "protocol": protocol}
