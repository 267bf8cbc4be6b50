"""Saves a run's state and its record: copied in memory at once, then stored by Ray Train's upload thread."""

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
from ray.train import CheckpointUploadMode

from pipeline.checkpoints import checkpoint
from pipeline.errors import CheckpointError
from pipeline.evaluation.metrics import Score
from pipeline.evaluation.protocol import validation_protocol
from pipeline.fault_tolerance.failures import NotStored, as_worker_fault
from pipeline.fault_tolerance.goodput import Goodput
from pipeline.fault_tolerance.interruptions import TimeSpent, longest_wait_s
from pipeline.model.learner import Learner
from pipeline.storage import disk
from pipeline.storage.store import Store
from pipeline.tracking.metric_log import MetricLog
from pipeline.training.run import Run

LOOK_S = 2.0
"""Seconds between two looks for a request to stop, while a checkpoint is being stored."""


@dataclass
class RunRecord:
    """What a run remembers besides its weights. A checkpoint holds the record without the checkpoint's own score."""

    replaced: int = 0
    """Training samples that could not be read and were replaced."""
    skipped: int = 0
    """Steps skipped because loss or gradient was not finite."""
    spent: TimeSpent = field(default_factory=TimeSpent)
    goodput: Goodput = field(default_factory=Goodput)
    """Where the time went; checkpoints of older versions have none."""
    best: float = -1.0
    """Highest mIoU so far."""
    since_best: int = 0
    """Validations since the best one."""

    @classmethod
    def of(cls, progress: dict[str, Any]) -> "RunRecord":
        """The record in a checkpoint's progress, with its score added. Raises CheckpointError for another version's."""
        miou = checkpoint.miou(progress)
        try:
            kept = progress["record"]
            record = cls(**kept | {"spent": TimeSpent(**kept["spent"]), "goodput": Goodput(**kept.get("goodput", {}))})
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint of step {progress['step']}: its record is of another version of this program ({error}); use that "
                "version, or give the run another name (name=...)"
            ) from error
        if miou is not None:
            record.add_score(miou)
        return record

    def json(self) -> dict[str, Any]:
        return vars(self) | {"spent": self.spent._asdict(), "goodput": self.goodput._asdict()}

    def add_score(self, miou: float) -> None:
        """Counts one more validation."""
        if miou > self.best:
            self.best, self.since_best = miou, 0
        else:
            self.since_best += 1


class CheckpointSaver:
    """Saves the run's state from rank 0, the only rank with a `log`. Every worker must call `save` at the same steps.

    `stop_requested`: why a stop was requested, None while it was not; called on rank 0 only.
    """

    def __init__(self, run: Run, learner: Learner, log: MetricLog | None, stop_requested: Callable[[], str | None]) -> None:
        self.run, self.learner, self.log, self.stop_requested = run, learner, log, stop_requested
        self.idle = threading.Event()
        self.idle.set()
        self.storing = 0
        """Step of the checkpoint that is being stored, or was the last one."""
        self.blocked_s, self.stored_s = 0.0, 0.0
        """Seconds that training has waited for checkpoints in total, and seconds that storing the last one took."""

    def save(
        self,
        step: int,
        record: RunRecord,
        *,
        score: Score | None = None,
        validation: bool = False,
        interrupted: str | None = None,
    ) -> None:
        """Reports a checkpoint after `step` steps. With `interrupted`, the checkpoint is stored when this returns.

        `validation`: its score is computed in the background. `interrupted`: why the run stops early. Raises NotStored if a
        stop was requested and the store takes too long.
        """
        started = time.monotonic()
        metrics = {"step": step, "run_id": self.run.run_id} | (score_metrics(score) if score else {})
        mode = CheckpointUploadMode.ASYNC  # also with `interrupted`: a wait in Ray's own upload could not be ended
        name = checkpoint.folder_name(step)
        if self.log is None:
            ray.train.report(metrics, checkpoint_dir_name=name, checkpoint_upload_mode=mode)
        else:
            self.wait()  # for the previous upload: two copies of the state could exceed the memory
            self.idle.clear()
            self.storing = step
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
                "score_pending": score is None and (validation or step % self.run.config.train.validate_every == 0),
                "interrupted": interrupted,
                "environment": self.run.environment or {},
            }
            local = ray.train.Checkpoint.from_directory(tempfile.mkdtemp(prefix=f"{_scratch()}{os.getpid()}-"))
            if self.run.in_process:  # Ray Train's local mode stores nothing
                self._store(state, progress, local, name)
                shutil.rmtree(local.path)
            ray.train.report(
                metrics,
                checkpoint=local,
                checkpoint_dir_name=name,
                checkpoint_upload_mode=mode,
                delete_local_checkpoint_after_upload=True,
                checkpoint_upload_fn=partial(self._store, state, progress),
                validation=validation,
            )
            self.run.notify(metrics, local)
        if interrupted:
            if self.log:
                self.wait()
            ray.train.collective.barrier()  # the controller ends all workers when the first one ends
        self.blocked_s += time.monotonic() - started
        if self.log:
            self.log.metrics({"checkpoint/blocked_s": self.blocked_s}, step)

    def wait(self) -> None:
        """Waits until the last checkpoint is stored. Raises NotStored `longest_wait_s` after a stop was requested."""
        reason, since = None, 0.0
        while not self.idle.wait(LOOK_S):
            if reason is None:
                reason, since = self.stop_requested(), time.monotonic()
            elif (waited_s := time.monotonic() - since) >= longest_wait_s(self.stored_s):
                raise NotStored(
                    f"{reason}; the checkpoint of step {self.storing} and what was trained after it are not stored, because "
                    f"{self.run.checkpoints.url('')} did not take them within {waited_s:.0f} s"
                )

    def _store(
        self, state: checkpoint.State, progress: dict[str, Any], local: ray.train.Checkpoint, name: str
    ) -> ray.train.Checkpoint:
        """Ray Train's upload, in our commit order: files, each read back, manifest last. Then prunes old checkpoints."""
        started, run = time.monotonic(), self.run
        try:
            with as_worker_fault():
                num_bytes = sum(tensor.nbytes for tensors in state for tensor in tensors.values())
                with disk.writing(Path(local.path).parent, num_bytes):
                    checkpoint.save(Path(local.path), state, progress)
                run.claim.check()  # a driver that was suspended may have been replaced by another one
                checkpoint.upload(Path(local.path), run.checkpoints, name)
                checkpoint.prune(run.checkpoints, run.config.train.keep_checkpoints, stored=name)
                return uploaded(run.checkpoints, name)
        except BaseException:
            shutil.rmtree(local.path, ignore_errors=True)  # Ray Train removes it only after an upload that succeeded
            raise
        finally:
            self.stored_s = time.monotonic() - started
            self.idle.set()


def _scratch() -> str:
    """Prefix of the local folders in which checkpoints are written before upload; the writer's process id follows it."""
    return f"ccnet-checkpoint-{socket.gethostname()}-"


def remove_leftovers() -> None:
    """Removes the local checkpoint folders that killed workers of this host left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_scratch()}*"):
        pid = folder.name.removeprefix(_scratch()).partition("-")[0]
        if not pid.isdecimal():  # the folder of a host whose name starts with this host's name
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)  # another worker may be removing it too
        except PermissionError:  # the process is alive and belongs to another user
            continue


def uploaded(store: Store, name: str) -> ray.train.Checkpoint:
    """A stored checkpoint as Ray Train's object."""
    file_system, path = store.arrow()
    return ray.train.Checkpoint(path=f"{path.rstrip('/')}/{name}", filesystem=file_system)


def score_metrics(score: Score) -> dict[str, Any]:
    """The metrics of a score that Ray Train and Tune receive, with what speaks against it."""
    metrics: dict[str, Any] = {"miou": score.miou, "num_images": score.num_images}
    return metrics | ({"caveat": score.caveat} if score.caveat else {})
