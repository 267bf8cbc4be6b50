"""How a run's state, and what it remembers, reach the storage: copied at once, written by Ray Train's upload thread."""

import os
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
from ray.train import CheckpointUploadMode

from pipeline.checkpoints import checkpoint
from pipeline.evaluation.metrics import Score
from pipeline.evaluation.protocol import validation_protocol
from pipeline.fault_tolerance.failures import as_worker_fault
from pipeline.fault_tolerance.interruptions import TimeSpent
from pipeline.model.learner import Learner
from pipeline.storage.store import Store
from pipeline.tracking.metric_log import MetricLog
from pipeline.training.run import Run


@dataclass
class RunRecord:
    """What a run remembers besides its weights. A checkpoint holds it as it was before the checkpoint's own score."""

    replaced: int = 0
    """Training samples that could not be read and were replaced."""
    skipped: int = 0
    """Steps skipped because loss or gradient was not finite."""
    spent: TimeSpent = field(default_factory=TimeSpent)
    best: float = -1.0
    """Highest mIoU so far."""
    since_best: int = 0
    """Validations since then."""

    @classmethod
    def of(cls, progress: dict[str, Any]) -> "RunRecord":
        """The record of a checkpoint's progress, the checkpoint's score included."""
        kept, miou = progress["record"], checkpoint.miou(progress)
        record = cls(**kept | {"spent": TimeSpent(**kept["spent"])})
        if miou is not None:
            record.add_score(miou)
        return record

    def json(self) -> dict[str, Any]:
        return vars(self) | {"spent": self.spent._asdict()}

    def add_score(self, miou: float) -> None:
        """Takes one more validation."""
        if miou > self.best:
            self.best, self.since_best = miou, 0
        else:
            self.since_best += 1


class CheckpointSaver:
    """Saves the run's state from rank 0, which alone has a log; every worker calls `save` at the same steps."""

    def __init__(self, run: Run, learner: Learner, log: MetricLog | None) -> None:
        self.run, self.learner, self.log = run, learner, log
        self.idle = threading.Event()
        self.idle.set()
        self.blocked_s, self.stored_s = 0.0, 0.0
        """Seconds that training waited for checkpoints, all in all, and that the last one took to be stored."""

    def save(
        self,
        step: int,
        record: RunRecord,
        *,
        score: Score | None = None,
        validation: bool = False,
        interrupted: str | None = None,
    ) -> None:
        """Reports a checkpoint after `step` steps; one that is taken on leaving off is stored when this returns.

        `validation`: its score is computed in the background.
        """
        started = time.monotonic()
        metrics = {"step": step, "run_id": self.run.run_id} | (score_metrics(score) if score else {})
        mode = CheckpointUploadMode.SYNC if interrupted else CheckpointUploadMode.ASYNC
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
                "run_key": self.run.config.run_key,
                "run_id": self.run.run_id,
                "model": learner.model,
                "class_names": self.run.manifest.class_names,
                "metrics": metrics,
                "config": self.run.config.record(),
                "protocol": validation_protocol(self.run.config, self.run.manifest),
                "scaler": learner.scaler.state_dict() if learner.scaler else {},
                "initial_sha256": learner.initial_sha256,
                "score": score and score._asdict(),
                "interrupted": interrupted,
            }
            folder = tempfile.mkdtemp(prefix=f"{_scratch()}{os.getpid()}-")
            ray.train.report(
                metrics,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=name,
                checkpoint_upload_mode=mode,
                delete_local_checkpoint_after_upload=True,
                checkpoint_upload_fn=partial(self._store, state, progress),
                validation=validation,
            )
        if interrupted:
            ray.train.collective.barrier()  # the controller ends all workers when the first one leaves
        self.blocked_s += time.monotonic() - started
        if self.log:
            self.log.metrics({"checkpoint/blocked_s": self.blocked_s}, step)

    def _store(
        self, state: checkpoint.State, progress: dict[str, Any], local: ray.train.Checkpoint, name: str
    ) -> ray.train.Checkpoint:
        """Ray Train's upload, by our own commit order: files, read back, manifest last; then the older ones go."""
        started, run = time.monotonic(), self.run
        try:
            with as_worker_fault():
                checkpoint.save(Path(local.path), state, progress)
                checkpoint.upload(Path(local.path), run.checkpoints, name)
                checkpoint.prune(run.checkpoints, run.config.train.keep_checkpoints, stored=name)
                return uploaded(run.checkpoints, name)
        except BaseException:
            shutil.rmtree(local.path, ignore_errors=True)  # Ray Train removes what was uploaded, and no more
            raise
        finally:
            self.stored_s = time.monotonic() - started
            self.idle.set()


def _scratch() -> str:
    """Begins the names of the folders in which checkpoints are written before their upload; the writer's process id follows."""
    return f"ccnet-checkpoint-{socket.gethostname()}-"


def remove_left_over() -> None:
    """Removes what killed workers of this host have left of checkpoints on their way."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_scratch()}*"):
        pid = folder.name.removeprefix(_scratch()).partition("-")[0]
        if not pid.isdecimal():  # of a host whose name begins with ours
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)  # another worker may be at it
        except PermissionError:  # somebody else's, and alive
            continue


def uploaded(store: Store, name: str) -> ray.train.Checkpoint:
    """A stored checkpoint as Ray Train knows it."""
    file_system, path = store.arrow()
    return ray.train.Checkpoint(path=f"{path.rstrip('/')}/{name}", filesystem=file_system)


def score_metrics(score: Score) -> dict[str, Any]:
    """What Ray Train and Tune are told of a score."""
    return {"miou": score.miou, "num_images": score.num_images}
