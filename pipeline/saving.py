"""How a run's state reaches the storage: copied at once, written by Ray Train's upload thread, and kept by its score."""

import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray.train
import ray.train.collective
from ray.train import CheckpointUploadMode

from pipeline import checkpoint, evaluate, figures, panels, workers
from pipeline.datasets import Sample, evaluation_samples
from pipeline.failures import explained
from pipeline.interruptions import Spent
from pipeline.job import Job
from pipeline.learner import Learner
from pipeline.plan import evaluation_share
from pipeline.score import Score
from pipeline.spool import MetricLog
from pipeline.storage import Store

logger = logging.getLogger(__name__)

SCRATCH = f"ccnet-checkpoint-{socket.gethostname()}-"
"""Begins the names of the folders in which checkpoints are written before their upload; the writer's process id follows."""


class Record(NamedTuple):
    """What a run remembers beside its weights."""

    replaced: int = 0
    """Training samples that could not be read and were replaced."""
    skipped: int = 0
    """Steps left out because loss or gradient were not finite."""
    spent: Spent = Spent()
    best: float = -1.0
    """Highest mIoU so far."""
    since_best: int = 0
    """Validations since then."""

    @classmethod
    def of(cls, progress: dict[str, Any]) -> "Record":
        """As a checkpoint's progress tells."""
        kept = progress.get("record", {})
        return cls(**kept | {"spent": Spent(**kept.get("spent", {}))})

    def json(self) -> dict[str, Any]:
        return self._asdict() | {"spent": self.spent._asdict()}

    def scored(self, miou: float) -> "Record":
        """After one more validation."""
        return self._replace(best=miou, since_best=0) if miou > self.best else self._replace(since_best=self.since_best + 1)


class Saver:
    """Saves the run's state from rank 0, which alone has a log; every worker calls `save` at the same steps."""

    def __init__(self, job: Job, learner: Learner, log: MetricLog | None) -> None:
        self.job, self.learner, self.log = job, learner, log
        self.idle = threading.Event()
        self.idle.set()
        self.blocked_s, self.stored_s = 0.0, 0.0
        """Seconds that training waited for checkpoints, all in all, and that the last one took to be stored."""

    def save(self, step: int, record: Record, *, score: Score | None = None, interrupted: str | None = None) -> None:
        """Reports a checkpoint after `step` steps; one without a score, taken on leaving off, is stored when this returns."""
        started = time.monotonic()
        metrics = {"step": step, "run_id": self.job.run_id}
        if score:
            metrics |= {"miou": score.miou, "num_images": score.num_images}
        mode = CheckpointUploadMode.ASYNC if score else CheckpointUploadMode.SYNC
        name = checkpoint.folder_name(step)
        if self.log is None:
            ray.train.report(metrics, checkpoint_dir_name=name, checkpoint_upload_mode=mode)
        else:
            self.idle.wait()  # the one before: a second copy of the state would pile up
            self.idle.clear()
            learner = self.learner
            state = checkpoint.snapshot(learner.net, learner.optimizer, learner.average.net if learner.average else None)
            progress = {
                "step": step,
                "record": record.json(),
                "run_key": self.job.config.run_key,
                "run_id": self.job.run_id,
                "model": learner.model,
                "class_names": self.job.manifest.class_names,
                "metrics": metrics,
                "config": self.job.config.record(),
                "protocol": evaluate.describe(self.job.config, self.job.manifest),
                "scaler": learner.scaler.state_dict() if learner.scaler else {},
                "initial_sha256": learner.initial_sha256,
                "score": score and score._asdict(),
                "interrupted": interrupted,
            }
            folder = tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-")
            ray.train.report(
                metrics,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=name,
                checkpoint_upload_mode=mode,
                delete_local_checkpoint_after_upload=True,
                checkpoint_upload_fn=partial(self._store, state, progress),
            )
        if not score:
            ray.train.collective.barrier()  # the controller ends all workers when the first one leaves
        self.blocked_s += time.monotonic() - started
        if self.log:
            self.log.metrics({"checkpoint/blocked_s": self.blocked_s}, step)

    def _store(
        self, state: checkpoint.State, progress: dict[str, Any], local: ray.train.Checkpoint, name: str
    ) -> ray.train.Checkpoint:
        """Ray Train's upload, by our own commit order: files, read back, manifest last; then the older ones go."""
        started, job = time.monotonic(), self.job
        try:
            with explained():
                checkpoint.save(Path(local.path), state, progress)
                checkpoint.upload(Path(local.path), job.checkpoints, name)
                checkpoint.prune(job.checkpoints, job.config.train.keep_checkpoints, stored=name)
                return uploaded(job.checkpoints, name)
        finally:
            self.stored_s = time.monotonic() - started
            self.idle.set()


def remove_left_over() -> None:
    """Removes what killed workers of this host have left of checkpoints on their way."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        try:
            os.kill(int(folder.name.removeprefix(SCRATCH).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)  # another worker may be at it
        except PermissionError:  # somebody else's, and alive
            continue


def uploaded(store: Store, name: str) -> ray.train.Checkpoint:
    """A stored checkpoint as Ray Train knows it."""
    file_system, path = store.arrow()
    return ray.train.Checkpoint(path=f"{path.rstrip('/')}/{name}", filesystem=file_system)


def _told(samples: Iterator[Sample], progress: Callable[[], None]) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        progress()


def validate(job: Job, learner: Learner, step: int, log: MetricLog | None, progress: Callable[[], None]) -> Score:
    """The score of the validation split, each image once over all workers; rank 0 logs it with its pictures.

    `progress` is called at each image.
    """
    started = time.monotonic()
    indices = evaluation_share(job.manifest.num_images("val"), workers.rank(), workers.world_size())
    samples = _told(evaluation_samples(job.config, job.manifest, "val", indices, job.config.evaluate.scale), progress)
    counts, num_images = evaluate.evaluate_samples(learner.scored, samples, len(job.manifest.class_names), learner.device)
    protocol = evaluate.describe(job.config, job.manifest)
    score = evaluate.reduced_score(counts, num_images, job.manifest, "val", protocol, learner.device)
    if log:
        log.metrics(score.metrics(), step)
        log.picture("confusion_matrix", step, figures.confusion_picture(score.matrix.counts.numpy(), score.class_names))
        for name, picture in panels.of_validation(job, learner).items():
            log.picture(name, step, picture)
        logger.info("step %d/%d  val mIoU %.4f on %d images  (%.1f s)", step, job.config.train.steps, score.miou,
                    score.num_images, time.monotonic() - started)  # fmt: skip
    return score
