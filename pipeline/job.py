"""What a run is told, and the checks before it takes a worker: every fault at once, each with its fix."""

import logging
from typing import NamedTuple

import ray

from pipeline import checkpoint, cluster, tracking
from pipeline.config import Config, ConfigError
from pipeline.datasets import Feed
from pipeline.environment import environment
from pipeline.shards import Manifest, read_manifest
from pipeline.storage import Store, check, open_store

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
    data = open_store(config.data_url, config.storage)
    checkpoints = open_store(f"{config.runs_url}/{run_key or config.run_key}", config.storage)
    manifest, uri = None, ""
    try:
        check(checkpoints)
        manifest = read_manifest(data)
    except (ValueError, OSError) as error:
        mistakes.append(str(error))
    try:
        uri = tracking.tracking_uri(config.tracking)
        tracking.check(uri)
    except tracking.TrackingError as error:
        mistakes.append(str(error))
    if mistakes or manifest is None:
        raise ConfigError(mistakes)
    if changed := data_changed(checkpoints, manifest):
        raise ConfigError([changed])
    cluster.connect()
    if shortage := cpu_shortage(config, ray.cluster_resources().get("CPU", 0)):
        raise ConfigError([shortage])
    run_id = tracking.open_run(config, environment=environment(), run_key=run_key, run_name=run_key)
    return Job(config, manifest, data, checkpoints, uri, run_id)


def data_changed(checkpoints: Store, manifest: Manifest) -> str | None:
    """Why the run cannot go on with this data, with the fix; None when it can."""
    progress = checkpoint.newest_progress(checkpoints)
    if progress is None:
        return None
    before = progress["score"]["protocol"]["data_fingerprint"]
    if before == manifest.fingerprint:
        return None
    return (
        f"{checkpoints.url('')}: step {progress['step']} was trained on data {before[:16]}, the data set is now "
        f"{manifest.fingerprint[:16]}; give the new run another name (name=...)"
    )


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
