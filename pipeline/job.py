"""What a run is told, and the checks before it takes a worker: every fault at once, each with its fix."""

import logging
from typing import Any, NamedTuple

import ray

from pipeline import checkpoint, cluster, evaluate, tracking
from pipeline.config import Config
from pipeline.datasets import Feed, open_data
from pipeline.environment import environment
from pipeline.learner import objective
from pipeline.loading import ConfigError
from pipeline.shards import Manifest
from pipeline.storage import Store, open_store

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    """What every worker of a run is told; pickles small."""

    config: Config
    manifest: Manifest
    data: Store
    checkpoints: Store
    tracking_uri: str
    run_id: str

    def first_step(self) -> int:
        """Optimizer steps already done according to the newest checkpoint that verifies."""
        last = checkpoint.latest(self.checkpoints)
        return last.step if last else 0

    def feed(self) -> Feed:
        """The training data from the newest checkpoint on; the one place that decides where a (re)start begins."""
        return Feed(self.config, self.data, self.manifest, self.first_step())


def open_job(config: Config, run_key: str | None = None) -> Job:
    """Checks storage, data, tracking and the cluster's CPUs, joins Ray and opens the MLflow run.

    `run_key` names a run other than the configuration's own, such as a search. Raises ConfigError with all that is wrong.
    """
    mistakes: list[str] = []
    checkpoints = open_store(f"{config.runs_url}/{run_key or config.run_key}", config.storage)
    opened, uri = None, ""
    try:
        opened = open_data(config)
    except (ValueError, OSError) as error:
        mistakes.append(str(error))
    try:
        uri = tracking.tracking_uri(config.tracking)
        tracking.check(uri)
    except tracking.TrackingError as error:
        mistakes.append(str(error))
    if mistakes or opened is None:
        raise ConfigError(mistakes)
    data, manifest = opened
    if mistake := weights_mistake(config, len(manifest.class_names)):
        raise ConfigError([mistake])
    if doubt := mining_doubt(config):
        logger.warning(doubt)
    newest = checkpoint.newest_progress(checkpoints)
    if newest and (changed := protocol_change(newest, evaluate.describe(config, manifest))):
        raise ConfigError([f"{checkpoints.url('')}: {changed}"])
    cluster.connect()
    if shortage := cpu_shortage(config, ray.cluster_resources().get("CPU", 0)):
        raise ConfigError([shortage])
    # A finished run is only looked at again: it keeps the commit and the versions that made it.
    finished = newest is not None and newest["step"] >= config.train.steps
    made_by = {} if finished else environment()
    run_id = tracking.open_run(config, environment=made_by, run_key=run_key, run_name=run_key)
    return Job(config, manifest, data, checkpoints, uri, run_id)


def protocol_change(progress: dict[str, Any], protocol: dict[str, Any]) -> str | None:
    """What of the data or the way of scoring differs from the run's newest checkpoint, with the fix; None when nothing does."""
    before = progress["score"]["protocol"]
    # What an older checkpoint did not record yet is no change.
    both = {key: (before[key], value) for key, value in protocol.items() if key in before}
    changed = [f"{key} was {was!r} and is {value!r}" for key, (was, value) in both.items() if was != value]
    if not changed:
        return None
    return f"at step {progress['step']} {'; '.join(changed)}; a run keeps both, so give the new one another name (name=...)"


def weights_mistake(config: Config, num_classes: int) -> str | None:
    """Why the class weights do not fit the data; None when they do."""
    weights = config.loss.class_weights
    if weights is None or len(weights) == num_classes:
        return None
    return f"loss.class_weights has {len(weights)} values: {config.data.name} has {num_classes} classes, give one each"


def mining_doubt(config: Config) -> str | None:
    """Why OHEM makes no sense as configured, with the fix; None when it does. Asked here: in workers warnings are silent."""
    hard = objective(config.loss).ohem
    problem = hard.problem(config.train.global_batch, *config.data.crop) if hard else None
    return problem and f"loss.ohem.{problem}"


def cpus_needed(config: Config) -> float:
    """Logical CPUs of one run: its workers and two Ray Data tasks; with fewer left, Ray Data waits for ever without a word."""
    return config.train.workers * config.train.cpus_per_worker + 2 * config.data.cpus_per_task


def cpu_shortage(config: Config, cpus: float) -> str | None:
    """Why the cluster's CPUs do not hold a run, with the fix; None when they do."""
    needed = cpus_needed(config)
    if needed <= cpus:
        return None
    room = (cpus - 2 * config.data.cpus_per_task) / config.train.workers
    fix = f"train.cpus_per_worker={room:.2g}" if room > 0 else "fewer train.workers or a larger cluster"
    return (
        f"train.workers = {config.train.workers}: {needed:g} CPUs are needed (workers x {config.train.cpus_per_worker:g} + "
        f"2 data tasks x {config.data.cpus_per_task:g}), the cluster has {cpus:g} (try {fix})"
    )
