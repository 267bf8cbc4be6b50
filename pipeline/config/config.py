"""A configuration: its sections and the values that follow from them. `pipeline.config.load` reads it."""

import hashlib
import json
import re
from typing import Any, Self

from pydantic import Field, model_validator

from pipeline.config.base import OUTPUT_STRIDE, Name, Section, Storage, Tracking, misaligned
from pipeline.config.benchmark import Benchmark
from pipeline.config.data import Data
from pipeline.config.evaluate import Evaluate, Export, Predict
from pipeline.config.model import Loss, Model
from pipeline.config.run_key import shaping
from pipeline.config.train import Faults, Stop, Train
from pipeline.config.tune import Tune


class Config(Section):
    name: Name
    """Name of the run; the run key adds a hash of every setting that shapes the result."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the first weights, the order of samples, augmentation and dropout."""
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
        if self.evaluate.background and self.stop.patience is not None:
            raise ValueError(
                f"evaluate.background = true: its scores come too late for stop.patience = {self.stop.patience} (try "
                "evaluate.background=false or stop.patience=null)"
            )
        return self

    @model_validator(mode="after")
    def _in_place(self) -> Self:
        if self.evaluate.background and self.train.local:
            raise ValueError("evaluate.background = true: train.workers = 0 validates in place (try evaluate.background=false)")
        return self

    @model_validator(mode="after")
    def _on_the_grid(self) -> Self:
        # A network of mmsegmentation has k cells for 8k pixels, which align if the corners do not.
        if self.model.variant == "mmseg" and self.model.align_corners is False:
            return self
        for name, sides in (("data.crop_size", self.data.crop_size), ("evaluate.window", self.evaluate.window)):
            if odd := [side for side in sides or () if side % OUTPUT_STRIDE != 1]:
                raise ValueError(f"{name} = {odd[0]}: {misaligned(odd[0])}")
        return self

    @property
    def run_key(self) -> str:
        """`<name>-<8 hex digits of a hash>`, or `train.resume`. The hash is that of all settings that shape the model.

        A resubmitted configuration resumes the run that has its key.
        """
        return self.train.resume or f"{self.name}-{_hash(shaping(self.record()))}"

    @property
    def search_key(self) -> str:
        """`<name>-search-<8 hex digits of a hash>`: that of all settings that shape a search and its trials.

        Their number is not among them, so that a larger one extends the search.
        """
        tree = self.record()
        tune = {name: tree["tune"][name] for name in ("space", "sampler", "grace_steps", "reduction")}
        for dimension in tune["space"].values():
            if not dimension["when"]:  # came later: a search without conditions keeps its key
                del dimension["when"]
        facts = [shaping(tree), tune]
        return f"{self.name}-search-{_hash(facts)}"

    @property
    def data_url(self) -> str:
        """Folder of the packed data set."""
        return f"{self.storage.path}/data/{self.data.name}"

    @property
    def runs_url(self) -> str:
        """Folder of all runs; each run has a subfolder named by its run key."""
        return f"{self.storage.path}/runs"

    @property
    def models_url(self) -> str:
        """Folder of all delivered models; that of a run has its run key as name."""
        return f"{self.storage.path}/models"

    def record(self) -> dict[str, Any]:
        """All settings as runs and checkpoints record them, without the password of the tracking server."""
        tree = self.model_dump(mode="json")
        tree["tracking"]["uri"] = self.tracking.uri and without_password(self.tracking.uri)
        return tree


def _hash(tree: Any) -> str:
    """8 hex digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def without_password(uri: str) -> str:
    """The address without user and password, which are never printed or stored."""
    return re.sub(r"^([\w+]+://)[^/]*@", r"\1", uri)
