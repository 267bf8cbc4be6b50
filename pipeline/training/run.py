"""What a run is told, and the checks before it takes a worker: every fault at once, each with its fix."""

import logging
import threading
from typing import Any, NamedTuple

import ray

from pipeline import errors
from pipeline.checkpoints import checkpoint
from pipeline.cluster import connect
from pipeline.config.config import Config
from pipeline.config.run_key import changed_settings, shaping
from pipeline.data.manifest import Manifest, open_data
from pipeline.errors import ConfigError
from pipeline.evaluation.protocol import validation_protocol
from pipeline.preflight import checks, storage_checks, training_checks
from pipeline.preflight.findings import Finding
from pipeline.storage.store import Store, open_store
from pipeline.tracking import runs
from pipeline.tracking.client import check_server, import_mlflow, tracking_uri
from pipeline.tracking.provenance import environment

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    """What every worker of a run is told; pickles small."""

    config: Config
    manifest: Manifest
    checkpoints: Store
    tracking_uri: str
    run_id: str
    on_gpus: bool = False
    """Each training worker holds a GPU; decided when the run starts, for a lost node must not move it to CPUs."""
    stop_flag: Any = None
    """Handle of the driver's `StopFlag`; None where nothing can ask for a stop."""

    def first_step(self) -> int:
        """Optimizer steps already done according to the newest checkpoint that verifies."""
        return checkpoint.latest_step(self.checkpoints)

    def done(self) -> bool:
        """Whether the checkpoint of the last step is there and verifies."""
        newest, steps = checkpoint.newest_progress(self.checkpoints), self.config.train.steps
        return newest is not None and newest["step"] >= steps and self.first_step() >= steps


def open_job(config: Config, run_key: str | None = None) -> Job:
    """Checks storage, data and tracking, joins Ray, has the doctor look at data, settings and cluster, and opens the MLflow run.

    `run_key` names a run other than the configuration's own, such as a search. Raises ConfigError with all that is wrong;
    what is only doubtful is logged as warnings.
    """
    mistakes: list[str] = []
    checkpoints = open_store(f"{config.runs_url}/{run_key or config.run_key}", config.storage)
    manifest, uri = None, ""
    try:
        manifest = open_data(config)
    except (ValueError, OSError) as error:
        mistakes.append(str(error))
    mistakes += _errors(storage_checks.buckets(config, checked=[config.storage.path]))
    try:
        uri = tracking_uri(config.tracking)
        check_server(uri)
    except errors.TrackingError as error:
        mistakes.append(str(error))
    if mistakes or manifest is None:
        raise ConfigError(mistakes)
    threading.Thread(target=import_mlflow).start()  # meanwhile
    connect.connect()
    mistakes = _errors(checks.examine(config, manifest, ray.cluster_resources()))
    newest = checkpoint.newest_progress(checkpoints)
    if newest is None:  # a run that goes on has its weights
        mistakes += _errors(training_checks.weights(config, len(manifest.class_names)))
    if newest is None and config.train.resume:
        mistakes.append(
            f"train.resume = {config.train.resume}: no checkpoint in {checkpoints.url('')}: correct it or leave it out"
        )
    if newest and (changed := changes(newest, config, validation_protocol(config, manifest))):
        mistakes.append(f"{checkpoints.url('')}: {changed}")
    if mistakes:
        raise ConfigError(mistakes)
    # A finished run is only looked at again: it keeps the commit and the versions that made it.
    finished = newest is not None and newest["step"] >= config.train.steps
    made_by = {} if finished else environment()
    run_id = runs.open_run(config, environment=made_by, run_key=run_key, run_name=run_key)
    return Job(config, manifest, checkpoints, uri, run_id, connect.gpus_for(config.train.fewest_workers))


def _errors(findings: list[Finding]) -> list[str]:
    """The errors' lines; warnings are logged."""
    for finding in findings:
        if finding.level == "warning":
            logger.warning("warning: %s", finding.line)
    return [finding.line for finding in findings if finding.level == "error"]


def changes(progress: dict[str, Any], config: Config, protocol: dict[str, Any]) -> str | None:
    """What the run's newest checkpoint was made with and is not so now, with the fix; None when it may be resumed."""
    changed = changed_settings(shaping(progress["config"]), shaping(config.record()))
    before = progress.get("protocol", {})
    # What an older checkpoint did not record yet is no change.
    both = {key: (before[key], value) for key, value in protocol.items() if key in before}
    changed += [f"{key} was {was!r} and is {value!r}" for key, (was, value) in both.items() if was != value]
    if not changed:
        return None
    fix = "set them back, or leave out train.resume" if config.train.resume else "give the new run another name (name=...)"
    return f"at step {progress['step']} {'; '.join(changed)}; a run keeps these: {fix}"
