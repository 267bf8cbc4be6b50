"""The training loop of one worker: batches in the sampler's order, one step per batch, validation and checkpoints."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import NamedTuple

import ray.train
import ray.train.torch
import torch

from ccnet import distributed
from ccnet.optim import poly_learning_rate
from ccnet.step import StepResult
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.train import Train
from pipeline.evaluation import charts, figures
from pipeline.fault_tolerance.failures import NodePreempted, as_worker_fault
from pipeline.fault_tolerance.goodput import Goodput, Stopwatch
from pipeline.fault_tolerance.hang import HangDetector
from pipeline.fault_tolerance.interruptions import Interruption, InterruptionMonitor, announce, interrupted, stop_requested
from pipeline.fault_tolerance.step_failures import SkippedSteps, noted_micro_batch, smaller_passes
from pipeline.formatting import hide_on_screen, show_own_lines
from pipeline.images.codec import UInt8
from pipeline.loading.batches import TrainingBatch, local_batches, training_batches
from pipeline.loading.feed import Feed, resumed
from pipeline.loading.stall import StallMonitor, stall_reason
from pipeline.model.learner import Learner
from pipeline.tracking import runs
from pipeline.tracking.metric_log import MetricLog
from pipeline.training.checkpointing import CheckpointSaver, RunRecord, remove_leftovers, score_metrics
from pipeline.training.metric_logs import open_log
from pipeline.training.run import Run
from pipeline.training.shared_load import from_rank_zero, load_once, pretrained_once
from pipeline.training.system_metrics import node_metrics
from pipeline.training.throughput import Throughput
from pipeline.training.validation import validate

logger = logging.getLogger(__name__)


class Actions(NamedTuple):
    """What to do after a step; the same on every worker."""

    log: bool
    validate: bool
    save: bool
    stop: Interruption | None = None


class Schedule:
    """Decides what to do after each step; `check` is the method of an InterruptionMonitor.

    A checkpoint that is due, with a validation or without, waits for a step that was not skipped: a run resumed from a checkpoint
    after a skipped step could not learn.
    """

    def __init__(self, train: Train, check: Callable[[int, float], Interruption | None]) -> None:
        self.train, self.check = train, check
        self.validation_due = self.save_due = False

    def after(self, done: int, applied: torch.Tensor | bool, stored_s: float) -> Actions:
        """What to do after `done` steps, the last of which changed the weights (`applied`) or was skipped.

        `applied` is read only where something depends on it, because reading it waits for the device. `stored_s`: seconds that
        storing a checkpoint takes. Every worker must call this after each step.
        """
        last = done == self.train.steps
        log = last or done % self.train.log_every == 0
        self.validation_due = self.validation_due or done % self.train.validate_every == 0
        self.save_due = self.save_due or self.validation_due or done % self.train.checkpoint_every == 0
        found = None if last else self.check(done, stored_s)
        if found and not applied:  # no checkpoint: a preempted worker leaves anyway, any other stop waits for the next check
            found = found._replace(save=False) if found.moves else None
        if found:
            # If there is no time to validate, the resumed run validates this checkpoint first.
            return Actions(log, found.validate, found.save, found)
        if not (last or (self.save_due and bool(applied))):
            return Actions(log, False, False)
        validate_now = last or self.validation_due
        self.validation_due = self.save_due = False
        return Actions(log, validate_now, True)


def train_worker(run: Run) -> None:
    """One DDP worker: trains from the newest checkpoint to the last step, or until it is interrupted."""
    torch.set_num_threads(run.config.train.threads or distributed.num_threads(ray.train.get_context().get_local_world_size()))
    show_own_lines(logging.INFO if distributed.rank() == 0 else logging.WARNING)
    for start in ("Error in training function", "`ray.train.report("):  # tracebacks: the fault is said in one sentence
        hide_on_screen("ray.train", start)
    remove_leftovers()
    log = open_log(run) if distributed.rank() == 0 else None
    try:
        debugged = run.config.train.local  # then an exception ends where it was raised, and a breakpoint is no hang
        hang_s = math.inf if debugged else run.config.faults.hang_s
        faults, detector = nullcontext() if debugged else as_worker_fault(), HangDetector(hang_s, partial(_report_hang, run))
        with faults, detector as hang, node_metrics(run, log):
            _train(run, log, hang)
    finally:
        if log:
            log.close()


def _train(run: Run, log: MetricLog | None, hang: HangDetector) -> None:
    run.claim.check()
    config, train, watch = run.config, run.config.train, Stopwatch(distributed.world_size())
    if log:
        announce(run.stop_flag, training=False)
    # The last checkpoint may be complete, if the worker died before it could report it.
    if from_rank_zero(run.done, ray.train.torch.get_device()):
        return
    learner, batches, record = _start(run, log, watch)
    if config.stop.impatient(record.since_best):  # patience ended with the pending validation in `_start`
        return
    interruptions = InterruptionMonitor(config, run.stop_flag, record.spent, distributed.world_size())
    saver = CheckpointSaver(run, learner, log, partial(stop_requested, run.stop_flag))
    on_gpu = learner.device.type == "cuda"
    busy = (lambda: not torch.cuda.current_stream(learner.device).query()) if on_gpu else (lambda: False)
    throughput = Throughput(train.steps, train.global_batch, watch, busy)
    schedule, skipped = Schedule(train, interruptions.check), SkippedSteps(config.faults.max_skipped_steps, record.skipped)
    replaced = 0 if distributed.rank() else record.replaced  # counts are summed over all workers: rank 0 adds the old count
    if log:
        announce(run.stop_flag, training=True)
    for batch in throughput.timed(batches):
        if log and batch.step == 0:
            for name, picture in _pictures_of_the_start(run, batch).items():
                log.picture(name, 0, picture)
            watch.lap()  # drawing is no part of a step
        learning_rate = poly_learning_rate(
            train.learning_rate, batch.step, train.steps, train.power, train.warmup_steps, train.min_lr
        )
        with smaller_passes(run.checkpoints, config, learner.micro_batch, batch.step):
            result = learner.step(batch.image, batch.label, step=batch.step, rows=batch.rows, learning_rate=learning_rate)
        hang.progress()
        skipped.record(batch.step, learning_rate, result)
        replaced += batch.replaced
        done = batch.step + 1
        due, score = schedule.after(done, result.applied, saver.stored_s), None
        if due.log or due.save or due.stop:
            skipped.check()
            record.skipped, record.spent = skipped.total, interruptions.spent
        throughput.step_done()  # here, because a GPU has done the step only after `skipped.check`
        if due.log or due.save:
            record.replaced = replaced_in_all(config, replaced, learner.device)
        if log and due.log:
            points, text = throughput.flush(done)
            log.metrics(points | _points(config, result, learning_rate, record), done)
            logger.info("step %d/%d  loss %.4f  %s", done, train.steps, float(result.losses["loss"]), text)
        if due.validate and not config.evaluate.background:
            with watch.part("validating"):
                score = validate(run, learner.scored, learner.device, done, log, hang.progress)
        if due.log or due.save:
            record.goodput = watch.total()
            if log:
                log.metrics(record.goodput.points(config, run.flops), done)
        if due.save:
            with watch.part("saving"), hang.paused():  # a slow store is no hang: `storage.patience_s` limits it
                background = due.validate and config.evaluate.background
                saver.save(done, record, score=score, validation=background, interrupted=due.stop and due.stop.reason)
        if score:
            record.add_score(score.miou)
        if due.stop:
            return _stop(due.stop, done)
        if config.stop.impatient(record.since_best) or (run.until and score and done >= run.until):
            break
    if log:
        with hang.paused():  # Ray Train would wait too, but not hear a request to stop
            saver.wait()


def _pictures_of_the_start(run: Run, batch: TrainingBatch) -> dict[str, UInt8]:
    """The first crops of a batch as the network is fed with them, and the pixels of each class."""
    manifest, shown = run.manifest, min(run.config.evaluate.panel_images, len(batch.label))
    crops = zip(batch.image[:shown].permute(0, 2, 3, 1).cpu().numpy(), batch.label[:shown].cpu().numpy(), strict=True)
    counts = {name: (split.pixels, split.images) for name, split in manifest.splits.items() if name in ("train", "val")}
    return {
        "training_batch": figures.training_batch(list(crops), manifest.colors, manifest.class_names),
        "class_histogram": charts.class_histogram(counts, manifest.class_names),
    }


def _stop(found: Interruption, done: int) -> None:
    """Logs why the workers stop early. Raises NodePreempted if they must restart on other nodes."""
    logger.warning("stopping after step %d: %s", done, found.reason)
    if found.moves:
        raise NodePreempted(found.reason)


def _points(config: Config, result: StepResult, learning_rate: float, record: RunRecord) -> dict[str, float]:
    """Metric points of one step."""
    points = {f"train/{name if name == 'loss' else f'loss_{name}'}": float(value) for name, value in result.losses.items()}
    points |= {"train/learning_rate": learning_rate, "train/gradient_norm": float(result.gradient_norm)}
    points |= {"train/skipped_steps": record.skipped} if record.skipped else {}
    return points | ({"data/replaced_samples": record.replaced} if config.data.max_skipped else {})


def _start(run: Run, log: MetricLog | None, watch: Stopwatch) -> tuple[Learner, Iterator[TrainingBatch], RunRecord]:
    """The learner in its state before the first batch, the batches from there on, and the run's record."""
    config, record, device = run.config, RunRecord(), ray.train.torch.get_device()
    build = partial(Learner, config, len(run.manifest.class_names), device)
    with ThreadPoolExecutor(1) as pool:  # Ray Data starts its processes while this one builds the network
        fed = pool.submit(_first_batch, run)
        resumes = from_rank_zero(lambda: checkpoint.newest_progress(run.checkpoints) is not None, device)
        learner = build(None if resumes else pretrained_once(config, device))
    first, batches, fed_s = fed.result()
    learner.micro_batch = from_rank_zero(lambda: noted_micro_batch(run.checkpoints), device) or learner.micro_batch
    loading, found = time.monotonic(), load_once(run.checkpoints, first.step, device) if first.step else None
    if found:
        learner.restore(found)
        record = RunRecord.of(found.progress)
        logger.info("resumed at step %d from %s (loaded in %.1f s)", found.step, found.url, time.monotonic() - loading)
    if log:
        watch.resume(record.goodput, _lost_s(run, record.goodput))
    due = first.step % config.train.validate_every == 0 and not config.evaluate.background
    if found and due and checkpoint.miou(found.progress) is None:
        with watch.part("validating"):
            record.add_score(_validate_pending(run, learner, found, log))
    learner.distribute()
    size = distributed.world_size()
    logger.info("%d worker%s, first batch after %.1f s", size, "s" if size > 1 else "", fed_s)
    return learner, chain([first], batches), record


def _lost_s(run: Run, kept: Goodput) -> float | None:
    """Seconds of this command that are in no checkpoint's record, if an attempt was interrupted; None if none was."""
    return time.time() - max(run.began, kept.until) if interrupted(run.stop_flag, run.began) else None


def _first_batch(run: Run) -> tuple[TrainingBatch, Iterator[TrainingBatch], float]:
    """This worker's first batch, the batches after it, and the seconds that the first one took."""
    config, started = run.config, time.monotonic()
    if run.in_process:
        batches = local_batches(resumed(config, run.manifest, run.checkpoints, 1))
        return next(batches), batches, time.monotonic() - started
    feed = Feed(config, run.manifest, 0, distributed.world_size())
    batches = training_batches(ray.train.get_dataset_shard("train"), feed, distributed.rank())
    batches = StallMonitor(config.data.stall_s, partial(stall_reason, config, run.manifest)).watched(batches)
    return next(batches), batches, time.monotonic() - started


def _validate_pending(run: Run, learner: Learner, found: checkpoint.Checkpoint, log: MetricLog | None) -> float:
    """Validates a checkpoint that was stored without its score, before training resumes from it; returns the mIoU."""
    # No progress for the hang detector: it would start to count, and the first step may still compile for minutes.
    score = validate(run, learner.scored, learner.device, found.step, log, lambda: None)
    metrics = score_metrics(score)
    if log:
        checkpoint.write_score(run.checkpoints, checkpoint.folder_name(found.step), found.sha256, metrics, score._asdict())
    reported = {"step": found.step, "run_id": run.run_id} | metrics
    ray.train.report(reported)
    run.notify(reported)
    return score.miou


def replaced_in_all(config: Config, replaced: int, device: torch.device) -> int:
    """Number of samples that all workers replaced in this run. Raises RuntimeError above `data.max_skipped`."""
    if not config.data.max_skipped:  # nothing is replaced: the first unreadable sample stops the feed
        return 0
    total = int(distributed.sum_over_workers(torch.tensor(replaced, device=device)))
    if total > config.data.max_skipped:
        raise RuntimeError(
            f"{total} training samples could not be read and were replaced, data.max_skipped = {config.data.max_skipped}: the "
            "log names them; fix the objects and submit the run again"
        )
    return total


def _report_hang(run: Run, text: str) -> None:
    """Writes the stacks of a worker that hangs to the log and to the MLflow run."""
    logger.error("%s", text)
    name = f"stacks/rank-{distributed.rank()}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        runs.log_text(run.tracking_uri, run.run_id, name, text)
    except Exception as error:  # the log has the stacks already, and nothing may delay the restart
        logger.warning("the stacks did not reach MLflow: %s", error)
