"""The training loop of one worker: batches in plan order, a step each, validation and checkpoints."""

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import ray.train
import ray.train.torch
import torch

from ccnet.optim import poly_learning_rate
from ccnet.step import StepResult
from pipeline.checkpoints import checkpoint
from pipeline.cluster import distributed
from pipeline.cluster.connect import show_own_lines
from pipeline.config.config import Config
from pipeline.errors import CheckpointError, StorageError
from pipeline.fault_tolerance.failures import MemoryShort, Moved, explained, is_memory_short
from pipeline.fault_tolerance.hang import StepWatch
from pipeline.fault_tolerance.interruptions import Interruption, Lookout
from pipeline.fault_tolerance.step_failures import MICRO_BATCH, LeftOut, noted_micro_batch
from pipeline.loading.batches import TrainingBatch, training_batches
from pipeline.loading.feed import Feed
from pipeline.loading.stall import Watchdog, stall_reason
from pipeline.model.learner import Learner
from pipeline.model.pretrained import read_initial
from pipeline.tracking import runs
from pipeline.tracking.metric_log import MetricLog
from pipeline.training.agenda import Agenda
from pipeline.training.checkpointing import Record, Saver, remove_left_over, score_metrics
from pipeline.training.run import Job
from pipeline.training.throughput import Progress
from pipeline.training.validation import validate

logger = logging.getLogger(__name__)


def train_worker(job: Job) -> None:
    """One DDP worker, from the newest checkpoint to the last step, or to what interrupts it before."""
    torch.set_num_threads(distributed.num_threads(ray.train.get_context().get_local_world_size()))
    show_own_lines(logging.INFO if distributed.rank() == 0 else logging.WARNING)
    remove_left_over()
    log = MetricLog(job.tracking_uri, job.run_id) if distributed.rank() == 0 else None
    try:
        with explained(), StepWatch(job.config.faults.hang_s, partial(_report_hang, job)) as watch:
            _train(job, log, watch)
    finally:
        if log and (unsent := log.close(timeout_s=30)):
            logger.warning("%d metric points wait in the spool; submit the run again when MLflow answers", unsent)


def _train(job: Job, log: MetricLog | None, watch: StepWatch) -> None:
    if job.done():  # a worker died when all that was left to do was to say so
        return
    config, train = job.config, job.config.train
    progress = Progress(train.steps, train.global_batch)
    learner, batches, record = _start(job, log)
    if config.stop.impatient(record.since_best):  # by a validation that was owed
        return
    saver, lookout = Saver(job, learner, log), Lookout(config, job.stop_flag, record.spent, distributed.world_size())
    agenda, left_out = Agenda(train, lookout.look), LeftOut(config.faults.max_skipped_steps, record.skipped)
    for step, image, label, replaced in progress.timed(batches):
        learning_rate = poly_learning_rate(train.learning_rate, step, train.steps, train.power, train.warmup_steps)
        result = _step(job, learner, image, label, step, learning_rate)
        progress.step_done()
        watch.progress()
        left_out.add(step, learning_rate, result)
        record = record._replace(replaced=record.replaced + replaced)
        done = step + 1
        turn = agenda.after(done, result.applied, saver.stored_s)
        if turn.logs or turn.saves or turn.leaves:
            left_out.ask()
            record = record._replace(skipped=left_out.total)
        total = replaced_in_all(config, record.replaced, learner.device) if turn.logs or turn.saves else 0
        if log and turn.logs:
            points, text = progress.flush(done)
            log.metrics(points | _points(config, result, learning_rate, record.skipped, total), done)
            logger.info("step %d/%d  loss %.4f  %s", done, train.steps, float(result.losses["loss"]), text)
        kept, score, apart = record._replace(replaced=total, spent=lookout.spent), None, config.evaluate.apart
        if turn.validates and not apart:
            score = validate(job, learner.scored, learner.device, done, log, watch.progress)
            record = record.scored(score.miou)
        if turn.saves:
            reason = turn.leaves and turn.leaves.reason
            with watch.paused():  # the storage has a patience of its own
                saver.save(done, kept, score=score, validation=turn.validates and apart, interrupted=reason)
        if turn.leaves:
            _leave(turn.leaves, done)
        if turn.leaves or config.stop.impatient(record.since_best):
            return


def _leave(found: Interruption, done: int) -> None:
    """Says why the workers leave off. Raises Moved when they are to start on other nodes."""
    logger.warning("leaving off after step %d: %s", done, found.reason)
    if found.moves:
        raise Moved(found.reason)


def _points(config: Config, result: StepResult, learning_rate: float, skipped: int, replaced: int) -> dict[str, float]:
    """What MLflow is told of a step."""
    points = {f"train/{name if name == 'loss' else f'loss_{name}'}": float(value) for name, value in result.losses.items()}
    points |= {"train/learning_rate": learning_rate, "train/gradient_norm": float(result.gradient_norm)}
    points |= {"train/skipped_steps": skipped} if skipped else {}
    return points | ({"data/replaced_samples": replaced} if config.data.max_skipped else {})


def _start(job: Job, log: MetricLog | None) -> tuple[Learner, Iterator[TrainingBatch], Record]:
    """The learner as it was when the feed's first step began, the batches from there, and what the run remembers."""
    config, record = job.config, Record()
    build = partial(Learner, config, len(job.manifest.class_names), ray.train.torch.get_device())
    with ThreadPoolExecutor(1) as pool:  # Ray Data starts its processes while this one imports and builds what learns
        fed = pool.submit(_first_batch, job)
        resumes = checkpoint.newest_progress(job.checkpoints) is not None
        learner = build(None if resumes else read_initial(config))
    first, batches, fed_s = fed.result()
    if resumes and not first.step:  # no checkpoint verifies
        learner = build(read_initial(config))
    learner.micro_batch = noted_micro_batch(job) or learner.micro_batch
    if first.step:
        loading = time.monotonic()
        found = _load(job, first.step)
        learner.restore(found)
        record = Record.of(found.progress)
        if distributed.rank():  # counts are added up over all workers
            record = record._replace(replaced=0)
        logger.info("resumed at step %d from %s (loaded in %.1f s)", found.step, found.url, time.monotonic() - loading)
        due = found.step % config.train.validate_every == 0 and not config.evaluate.apart
        if due and checkpoint.miou(found.progress) is None:
            record = record.scored(_make_up(job, learner, found, log))
    learner.distribute()
    size = distributed.world_size()
    logger.info("%d worker%s, first batch after %.1f s", size, "s" if size > 1 else "", fed_s)
    return learner, chain([first], batches), record


def _first_batch(job: Job) -> tuple[TrainingBatch, Iterator[TrainingBatch], float]:
    """This worker's first batch, those after it, and the seconds that the first one took."""
    config, started = job.config, time.monotonic()
    feed = Feed(config, job.manifest, 0, distributed.world_size())
    batches = training_batches(ray.train.get_dataset_shard("train"), feed, distributed.rank())
    batches = Watchdog(config.data.stall_s, partial(stall_reason, config, job.manifest)).watched(batches)
    return next(batches), batches, time.monotonic() - started


def _load(job: Job, step: int) -> checkpoint.Checkpoint:
    """The checkpoint with which the feed goes on. Raises StorageError, so that the next attempt looks again which ones verify."""
    try:
        return checkpoint.load(job.checkpoints, checkpoint.folder_name(step))
    except CheckpointError as error:
        raise StorageError(f"{error}; it verified when this attempt began") from error


def _make_up(job: Job, learner: Learner, found: checkpoint.Checkpoint, log: MetricLog | None) -> float:
    """Validates a checkpoint that was stored without its score, before training goes on from it; the mIoU."""
    # Not counted as progress, for the first step still to come may compile for minutes.
    score = validate(job, learner.scored, learner.device, found.step, log, lambda: None)
    metrics = score_metrics(score)
    if log:
        checkpoint.write_score(job.checkpoints, checkpoint.folder_name(found.step), found.sha256, metrics, score._asdict())
    ray.train.report({"step": found.step, "run_id": job.run_id} | metrics)
    return score.miou


def _step(job: Job, learner: Learner, image: torch.Tensor, label: torch.Tensor, step: int, learning_rate: float) -> StepResult:
    """A step; when memory runs short, half as many images a pass are noted for the next attempt. Raises MemoryShort then."""
    try:
        return learner.step(image, label, step, learning_rate)
    except RuntimeError as error:
        if not is_memory_short(error):
            raise
        share = math.ceil(job.config.train.global_batch / distributed.world_size())
        used = min(learner.micro_batch or share, share)
        if used == 1:
            lighter = ", or set train.precision=bf16" if job.config.train.precision == "float32" else ""
            raise MemoryShort(
                f"one image of {job.config.data.crop} does not fit: lower data.crop_size{lighter} ({error})",
                smaller=False,
            ) from error
        job.checkpoints.write(MICRO_BATCH, json.dumps({"micro_batch": math.ceil(used / 2), "step": step}).encode())
        raise MemoryShort(
            f"{used} images a pass do not fit at step {step}; going on with {math.ceil(used / 2)}, gradients added up to the "
            f"same global batch ({error})",
            smaller=True,
        ) from error


def replaced_in_all(config: Config, replaced: int, device: torch.device) -> int:
    """Replaced samples of all workers in this run. Raises RuntimeError past `data.max_skipped`."""
    if not config.data.max_skipped:  # the first one that cannot be read has stopped the feed
        return 0
    total = int(distributed.sum_over_workers(torch.tensor(replaced, device=device)))
    if total > config.data.max_skipped:
        raise RuntimeError(
            f"{total} training samples could not be read and were replaced, data.max_skipped = {config.data.max_skipped}: the "
            "log names them; mend the objects and submit the run again"
        )
    return total


def _report_hang(job: Job, text: str) -> None:
    """The stacks of a worker that hangs, into the log and into the run."""
    logger.error("%s", text)
    name = f"stacks/rank-{distributed.rank()}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        runs.log_text(job.tracking_uri, job.run_id, name, text)
    except Exception as error:  # the log has it already, and nothing may keep the worker from starting anew
        logger.warning("the stacks did not reach MLflow: %s", error)
