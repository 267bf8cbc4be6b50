"""A configuration: its sections, and what follows from them; `pipeline.config.load` reads it."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import to_jsonable_python

from pipeline.config.base import Benchmark, Evaluate, Export, Loss, Model, Predict, Section, Storage, Tracking, Tune
from pipeline.config.data import Data
from pipeline.config.train import Faults, Stop, Train
from pipeline.loading.sampler import largest_share

NOT_SHAPING = {
    "data": ("block_bytes", "cpus_per_task", "source", "lists", "packed", "shard_rows", "max_skipped", "stall_s"),
    "train": ("workers", "cpus_per_worker", "log_every", "keep_checkpoints", "max_failures", "resume", "validate_every"),
}
"""Settings that leave the trained model as it is, bit for bit or up to the order of floating-point sums. What earlier versions
recorded stays here: their checkpoints are compared as well (`max_failures`)."""

UNKNOWN = object()
FREE_KEYS = {"data.oversample"}
"""Settings that are dictionaries of the user's own keys: one more key is another value, not a setting of a later version."""


def shaping(record: dict[str, Any]) -> dict[str, Any]:
    """Of all settings, as a run records them, those that shape the trained model."""
    kept = {name: record[name] for name in ("seed", "data", "model", "train", "loss")}
    for name, settings in NOT_SHAPING.items():
        kept[name] = {key: value for key, value in kept[name].items() if key not in settings}
    side = kept["data"]["crop_size"]
    kept["data"]["crop_size"] = [side, side] if isinstance(side, int) else side
    return kept


def _default(section: str, name: str) -> Any:
    """The default of a section's setting as records have it; UNKNOWN of settings within settings, and of those without one."""
    sections: dict[str, type[Section]] = {"data": Data, "model": Model, "train": Train, "loss": Loss}
    field = sections[section].model_fields.get(name) if section in sections else None
    if field is None or field.is_required():
        return UNKNOWN
    return to_jsonable_python(field.get_default(call_default_factory=True))


def changed_settings(recorded: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`train.global_batch was 8 and is 16` for each setting that differs between two nested records.

    A setting that was not recorded has been added since, with a default that leaves earlier runs as they are, and counts as such.
    """
    found = []
    for name in current.keys() - recorded.keys():
        default = _default(prefix.rstrip("."), name)
        if default is not UNKNOWN and current[name] != default:
            found.append(f"{prefix}{name} was {default!r} and is {current[name]!r}")
    for name, was in recorded.items():
        key = f"{prefix}{name}"
        if name not in current:
            found.append(f"{key} was {was!r} and is no setting any more")
        elif isinstance(was, Mapping) and isinstance(current[name], Mapping) and key not in FREE_KEYS:
            found += changed_settings(was, current[name], f"{key}.")
        elif was != current[name]:
            found.append(f"{key} was {was!r} and is {current[name]!r}")
    return found


class Config(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the run; the run key adds a hash of every setting that shapes the result."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of weights, order, augmentation and dropout."""
    storage: Storage
    data: Data
    model: Model
    train: Train = Train()
    faults: Faults = Faults()
    stop: Stop = Stop()
    loss: Loss = Loss()
    evaluate: Evaluate = Evaluate()
    predict: Predict = Predict()
    export: Export = Export()
    tracking: Tracking = Tracking()
    tune: Tune = Tune()
    benchmark: Benchmark = Benchmark()

    @model_validator(mode="after")
    def _in_time(self) -> Self:
        if self.evaluate.apart and self.stop.patience is not None:
            raise ValueError(
                f"evaluate.apart = true: its scores come too late for stop.patience = {self.stop.patience} "
                "(try evaluate.apart=false or stop.patience=null)"
            )
        return self

    @property
    def run_key(self) -> str:
        """`<name>-<8 hex digits of the shaping settings>`: equal exactly when a resubmitted run may continue the earlier one."""
        digest = hashlib.sha256(json.dumps(shaping(self.record()), sort_keys=True).encode()).hexdigest()
        return self.train.resume or f"{self.name}-{digest[:8]}"

    @property
    def data_url(self) -> str:
        """Folder of the packed data set."""
        return f"{self.storage.path}/data/{self.data.name}"

    @property
    def runs_url(self) -> str:
        """Folder of all runs; each has one of its own, named by its run key."""
        return f"{self.storage.path}/runs"

    def steps_per_block(self, workers: int) -> int:
        """Training steps in one Ray Data block of one of so many workers."""
        return max(1, self.data.block_bytes // self._step_bytes(workers))

    def block_bytes(self, workers: int) -> int:
        """Bytes of one Ray Data block, uint8 image and label; equally many for each of so many workers, by padding."""
        return self.steps_per_block(workers) * self._step_bytes(workers)

    def _step_bytes(self, workers: int) -> int:
        return largest_share(self.train.global_batch, workers) * 4 * self.data.crop[0] * self.data.crop[1]

    def record(self) -> dict[str, Any]:
        """Every setting, as runs and checkpoints record it: without the tracking server's password."""
        tree = self.model_dump(mode="json")
        tree["tracking"]["uri"] = self.tracking.uri and without_password(self.tracking.uri)
        return tree


def without_password(uri: str) -> str:
    """The address without user and password: neither is printed or stored."""
    return re.sub(r"^([\w+]+://)[^/]*@", r"\1", uri)
