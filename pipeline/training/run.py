"""A training run: what its workers receive, and how it is opened."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline.checkpoints import checkpoint
from pipeline.cluster import connect
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest, data_set
from pipeline.preflight.checks import examine, prepared
from pipeline.preflight.findings import refuse
from pipeline.storage import lease
from pipeline.storage.store import Store, open_store
from pipeline.tracking import runs
from pipeline.tracking.client import import_mlflow, tracking_uri
from pipeline.tracking.provenance import environment, other_code


class Run(NamedTuple):
    """What every worker of a run receives; its pickle is small."""

    config: Config
    manifest: Manifest
    checkpoints: Store
    tracking_uri: str
    run_id: str
    claim: lease.Claim
    """The driver's hold on the run's folder; a trial has that of its search."""
    on_gpus: bool = False
    """Each training worker holds a GPU; decided when the run starts, so that a lost node does not move the run to CPUs."""
    stop_flag: Any = None
    """Handle of the driver's `StopFlag`; None where nothing can request a stop."""
    began: float = 0.0
    """Unix time at which this command, or this stage of a trial, began to train; all its attempts have the same."""
    flops: int = 0
    """Floating-point operations of a training image, forward and backward: three forward passes. 0: they are not counted."""
    until: int | None = None
    """Step of a validation at which this attempt ends, as the stage of a trial does; None: it trains to the last step."""
    in_process: bool = False
    """The process that calls Ray Train trains itself, alone, and makes its own data: no worker is started."""
    callbacks: tuple[Any, ...] = ()
    """Callbacks of Ray Train whose `after_report` a training in process calls itself, because Ray's local mode does not."""
    environment: dict[str, str] | None = None
    """Commit, versions and devices of the driver; every checkpoint records them."""

    def first_step(self) -> int:
        """Optimizer steps already done according to the newest checkpoint that verifies."""
        return checkpoint.latest_step(self.checkpoints)

    @property
    def end(self) -> int:
        """Step at which this attempt ends."""
        return self.until or self.config.train.steps

    def notify(self, metrics: dict[str, Any], stored: Any = None) -> None:
        """Tells the callbacks of a training in process what was reported, with the checkpoint `stored`, if any."""
        for callback in self.callbacks:
            callback.after_report(None, [metrics], stored)

    def done(self) -> bool:
        """Whether the checkpoint of the step at which this attempt ends exists and verifies."""
        newest = checkpoint.newest_progress(self.checkpoints)
        return newest is not None and newest["step"] >= self.end and self.first_step() >= self.end


@contextmanager
def open_run(config: Config, run_key: str | None = None) -> Iterator[Run]:
    """Runs the checks before a run, joins Ray, opens the MLflow run, and holds the run's folder in this block.

    `run_key` names a run other than the configuration's own, such as a search. Raises ConfigError with all errors that the checks
    find, whose warnings are logged, and LeaseError if another process trains this run.
    """
    manifest, found = prepared(config)
    preflight = examine(config, manifest, run_key, searches=run_key is not None)
    refuse([*found, *preflight.findings])
    assert manifest is not None
    threading.Thread(target=import_mlflow).start()  # while Ray starts
    connect.join()
    # Opening a finished run again must not replace the commit and the versions that produced it.
    newest = preflight.newest
    finished = newest is not None and newest["step"] >= config.train.steps
    made_by = {} if finished else environment()
    changed = other_code(newest.get("environment", {}), made_by) if newest else []
    line = f"step {newest['step']}: {'; '.join(changed)}" if newest and changed else ""
    names, uri = manifest.class_names, tracking_uri(config.tracking)
    checkpoints = open_store(f"{config.runs_url}/{run_key or config.run_key}", config.storage)
    with lease.held(checkpoints) as claim:
        run_id = runs.open_mlflow_run(
            config,
            environment=made_by,
            run_key=run_key,
            run_name=run_key,
            other_code=line,
            class_names=names,
            data=data_set(config, manifest),
        )
        earlier = newest.get("run_id", run_id) if newest else run_id
        if newest and earlier != run_id:
            runs.take_over(uri, earlier, run_id, newest["step"])
        on_gpus = connect.gpus_for(config.train.fewest_workers)
        yield Run(config, manifest, checkpoints, uri, run_id, claim, on_gpus, in_process=config.train.local, environment=made_by)
