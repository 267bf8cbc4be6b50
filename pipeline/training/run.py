"""A training run: what its workers receive, and how it is opened."""

import threading
from typing import Any, NamedTuple

from pipeline.checkpoints import checkpoint
from pipeline.cluster import connect
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.preflight.checks import examine, prepared
from pipeline.preflight.findings import refuse
from pipeline.storage.store import Store, open_store
from pipeline.tracking import runs
from pipeline.tracking.client import import_mlflow, tracking_uri
from pipeline.tracking.provenance import environment


class Run(NamedTuple):
    """What every worker of a run receives; its pickle is small."""

    config: Config
    manifest: Manifest
    checkpoints: Store
    tracking_uri: str
    run_id: str
    on_gpus: bool = False
    """Each training worker holds a GPU; decided when the run starts, so that a lost node does not move the run to CPUs."""
    stop_flag: Any = None
    """Handle of the driver's `StopFlag`; None where nothing can request a stop."""

    def first_step(self) -> int:
        """Optimizer steps already done according to the newest checkpoint that verifies."""
        return checkpoint.latest_step(self.checkpoints)

    def done(self) -> bool:
        """Whether the checkpoint of the last step exists and verifies."""
        newest, steps = checkpoint.newest_progress(self.checkpoints), self.config.train.steps
        return newest is not None and newest["step"] >= steps and self.first_step() >= steps


def open_run(config: Config, run_key: str | None = None) -> Run:
    """Runs the checks before a run, joins Ray, and opens the MLflow run.

    `run_key` names a run other than the configuration's own, such as a search. Raises ConfigError with all errors that the checks
    find; their warnings are logged.
    """
    manifest, found = prepared(config)
    preflight = examine(config, manifest, run_key)
    refuse([*found, *preflight.findings])
    assert manifest is not None
    threading.Thread(target=import_mlflow).start()  # while Ray starts
    connect.join()
    # Opening a finished run again must not replace the commit and the versions that produced it.
    finished = preflight.newest is not None and preflight.newest["step"] >= config.train.steps
    made_by = {} if finished else environment()
    names = manifest.class_names
    run_id = runs.open_mlflow_run(config, environment=made_by, run_key=run_key, run_name=run_key, class_names=names)
    checkpoints = open_store(f"{config.runs_url}/{run_key or config.run_key}", config.storage)
    uri = tracking_uri(config.tracking)
    if preflight.newest and preflight.newest["run_id"] != run_id:
        runs.take_over(uri, preflight.newest["run_id"], run_id, preflight.newest["step"])
    return Run(config, manifest, checkpoints, uri, run_id, connect.gpus_for(config.train.fewest_workers))
