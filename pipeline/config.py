"""A configuration: its sections, and what follows from them; `pipeline.loading` reads it."""

import hashlib
import json
import urllib.parse
from typing import Any

from pydantic import Field

from pipeline.data_settings import Data
from pipeline.settings import Benchmark, Evaluate, Export, Loss, Model, Predict, Section, Storage, Tracking, Train, Tune


class Config(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the run; the run key adds a hash of every setting that shapes the result."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of weights, order, augmentation and dropout."""
    storage: Storage
    data: Data
    model: Model
    train: Train = Train()
    loss: Loss = Loss()
    evaluate: Evaluate = Evaluate()
    predict: Predict = Predict()
    export: Export = Export()
    tracking: Tracking = Tracking()
    tune: Tune = Tune()
    benchmark: Benchmark = Benchmark()

    @property
    def run_key(self) -> str:
        """`<name>-<8 hex digits>`: equal exactly when a resubmitted run may continue the earlier one.

        Left out of the hash are the settings that leave the trained model as it is (bit for bit, or up to the order of
        floating-point sums): number of workers, resources, cadence of logs, tracking, evaluation, prediction, search.
        """
        shaping = self.model_dump(mode="json", include={"seed", "data", "model", "train", "loss"})
        shaping["data"]["crop_size"] = self.data.crop
        for key in ("block_bytes", "cpus_per_task", "source", "lists", "packed", "shard_rows", "max_skipped", "stall_s"):
            del shaping["data"][key]
        for key in ("workers", "cpus_per_worker", "log_every", "keep_checkpoints", "max_failures", "validate_every"):
            del shaping["train"][key]
        digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:8]}"

    @property
    def data_url(self) -> str:
        """Folder of the packed data set."""
        return f"{self.storage.path}/data/{self.data.name}"

    @property
    def runs_url(self) -> str:
        """Folder of all runs; each has one of its own, named by its run key."""
        return f"{self.storage.path}/runs"

    @property
    def steps_per_block(self) -> int:
        """Training steps in one Ray Data block of a worker."""
        return max(1, self.data.block_bytes // self._step_bytes)

    @property
    def block_bytes(self) -> int:
        """Bytes of one Ray Data block: uint8 image and label."""
        return self.steps_per_block * self._step_bytes

    @property
    def _step_bytes(self) -> int:
        return self.train.global_batch // self.train.workers * 4 * self.data.crop[0] * self.data.crop[1]

    def record(self) -> dict[str, Any]:
        """Every setting, as runs and checkpoints record it: without the tracking server's password."""
        tree = self.model_dump(mode="json")
        tree["tracking"]["uri"] = self.tracking.uri and without_password(self.tracking.uri)
        return tree


def without_password(uri: str) -> str:
    """The address without user and password: neither is printed or stored."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
