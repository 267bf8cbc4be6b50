"""Validation during a run: in place by its workers, or in the background by a Ray task that loads stored checkpoints.

In the background, a checkpoint is stored first and scored later; the score is stored next to its manifest. A failure there does
not disturb training: the next validation scores the checkpoint, at the latest the one at the end of the run.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
import torch
from ray.train import Checkpoint, ValidationConfig

from ccnet import CCNet, build_ccnet, distributed
from pipeline.checkpoints import checkpoint
from pipeline.cluster.task_errors import task_errors
from pipeline.errors import CheckpointError
from pipeline.evaluation import charts, evaluate, panels
from pipeline.evaluation.metrics import Score, counted
from pipeline.evaluation.protocol import validation_protocol
from pipeline.fault_tolerance.failures import root_cause
from pipeline.fault_tolerance.hang import HangDetector
from pipeline.fault_tolerance.interruptions import stop_requested
from pipeline.formatting import show_own_lines
from pipeline.loading.batches import Sample, evaluation_samples
from pipeline.loading.sampler import evaluation_share
from pipeline.tracking.metric_log import MetricLog
from pipeline.training.checkpointing import score_metrics
from pipeline.training.metric_logs import open_log
from pipeline.training.run import Run

logger = logging.getLogger(__name__)

LESS_MEMORY = "lower evaluate.scale, or validate in the workers (evaluate.background=false)"
"""How the task of a validation needs less memory."""
POLL_S = 2.0
"""Seconds between two checks whether a stop was requested."""


def validate(
    run: Run,
    net: CCNet,
    device: torch.device,
    step: int,
    log: MetricLog | None,
    progress: Callable[[], None],
) -> Score:
    """The score of the validation split, each image counted once over all workers; `log` receives it with its pictures.

    `progress` is called after each image.
    """
    started = time.monotonic()
    indices = evaluation_share(run.manifest.num_images("val"), distributed.rank(), distributed.world_size())
    samples = _reporting_progress(
        evaluation_samples(run.config, run.manifest, "val", indices, run.config.evaluate.scale), progress
    )
    num_classes, most = len(run.manifest.class_names), run.config.evaluate.panel_images
    counts, seen = evaluate.evaluate_samples(net, samples, num_classes, device)
    protocol = validation_protocol(run.config, run.manifest)
    score = evaluate.reduced_score(counts, len(seen), run.manifest, "val", protocol, device)._replace(gamma=net.gamma)
    examples = evaluate.example_images(seen, score.num_images, most, num_classes, device)
    worst = evaluate.worst_images(seen, score.num_images, most, device)
    if log:
        log.metrics(score.metrics(), step)
        log.picture("confusion_matrix", step, charts.confusion_picture(score.matrix.counts.numpy(), score.class_names))
        for name, picture in panels.of_validation(run.config, run.manifest, net, device, examples, worst).items():
            log.picture(name, step, picture)
        note = f"{score.caveat}, " if score.caveat else ""
        logger.info("step %d/%d  val mIoU %.4f %son %s  (%.1f s)", step, run.config.train.steps, score.miou, note,
                    counted(score.num_images), time.monotonic() - started)  # fmt: skip
    return score


def _reporting_progress(samples: Iterator[Sample], progress: Callable[[], None]) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        progress()


def pending_validations(run: Run, step: int) -> list[int]:
    """Steps of the stored checkpoints whose score is missing, oldest first: the checkpoint after `step` steps, and those of
    earlier validation steps."""
    every = run.config.train.validate_every
    return [found for found in checkpoint.unscored(run.checkpoints) if found == step or (found < step and found % every == 0)]


def background_validation(run: Run) -> ValidationConfig:
    """Makes Ray Train validate checkpoints reported with `validation=True`, one at a time, while training continues."""
    # Ray Train ends a run whose validation process dies, so this one needs no resources and only waits for our own task.
    return ValidationConfig(fn=partial(_validate_reported, run), ray_remote_kwargs={"num_cpus": 0})


def _validate_reported(run: Run, reported: Checkpoint) -> dict[str, Any]:
    """Has a reported checkpoint validated; a failure is a warning. Returns no metrics to Ray Train: the store has the score."""
    step = int(reported.path.rpartition("-")[2])
    if stop_requested(run.stop_flag):  # Ray Train waits for all validations before it lets the run end
        return {}
    try:
        task = validation_task(run, step)
        while not ray.wait([task], timeout=POLL_S)[0]:
            if stop_requested(run.stop_flag):
                ray.cancel(task, force=True)
                return {}
        with task_errors(LESS_MEMORY):
            ray.get(task)
    except Exception as error:
        logger.warning("%s is not validated yet, training continues: %s", reported.path, root_cause(error))
    return {}


def validation_task(run: Run, step: int) -> Any:
    """Starts `validate_all_pending` with the resources of one training worker; returns the reference for `ray.get`."""
    train = run.config.train
    # DEFAULT: outside of the placement group of a trial, which has no room for it.
    task: Any = ray.remote(num_cpus=train.cpus_per_worker, num_gpus=int(run.on_gpus), scheduling_strategy="DEFAULT")
    return task(validate_all_pending).remote(run, step)


def validate_all_pending(run: Run, step: int) -> None:
    """Validates all checkpoints whose score is pending, in this process alone; skips those that do not verify."""
    show_own_lines()
    device = torch.device("cuda" if run.on_gpus and torch.cuda.is_available() else "cpu")
    log = open_log(run)
    try:
        with HangDetector(run.config.faults.hang_s, partial(logger.error, "%s")) as hang:
            for each in pending_validations(run, step):
                try:
                    _score(run, each, device, log, hang.progress)
                except CheckpointError as error:
                    logger.warning("not validated: %s", error)
    finally:
        log.close()


def _score(run: Run, step: int, device: torch.device, log: MetricLog, progress: Callable[[], None]) -> None:
    """Validates a stored checkpoint as the workers would have, and stores its score."""
    name = checkpoint.folder_name(step)
    found = checkpoint.load(run.checkpoints, name, with_optimizer=False)
    net: CCNet = build_ccnet(**found.progress["model"])
    checkpoint.restore(found, net)
    # The learner's memory format: in another one, sums would be rounded differently.
    net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    score = validate(run, net, device, step, log, progress)
    checkpoint.write_score(run.checkpoints, name, found.sha256, score_metrics(score), score._asdict())
