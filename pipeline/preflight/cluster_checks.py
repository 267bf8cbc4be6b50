"""Checks of the cluster and the disk, each finding with its fix."""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.cluster import connect, shared
from pipeline.cluster.shared import Place
from pipeline.config.config import Config
from pipeline.config.model import WEIGHTS_BY_NAME
from pipeline.data.manifest import Manifest
from pipeline.errors import TrackingError
from pipeline.formatting import percent, size
from pipeline.loading.blocks import block_bytes, steps_per_block
from pipeline.preflight.findings import Finding
from pipeline.preflight.resources import DATA_TASKS, checkpoint_bytes, cpus_beside, cpus_needed, feed_bytes, workers_started
from pipeline.tracking.client import tracking_uri

OBJECT_STORE_SHARE = 0.5
"""Share of the cluster's object store that Ray Data fills before it holds its tasks back (Ray Data's default)."""


def examine(config: Config, manifest: Manifest, cluster: Mapping[str, float]) -> list[Finding]:
    """Every finding about the cluster and the disk. `cluster`: CPU, GPU and object_store_memory in bytes."""
    return [*resources(config, cluster), *disk(config, manifest), *temporary(config, manifest)]


def resources(config: Config, cluster: Mapping[str, float]) -> list[Finding]:
    """What the cluster lacks for a run, and a batch that its workers cannot share evenly. Needs no data set."""
    cpu, gpu = cluster.get("CPU", 0), cluster.get("GPU", 0)
    return [
        *shares(config),
        *cpus(config, cpu),
        *crowding(config, cpu, gpu),
        *gpus(config, gpu),
        *background_gpu(config, cpu, gpu),
        *object_store(config, cluster),
    ]


def shares(config: Config) -> list[Finding]:
    """Numbers of workers that do not divide the batch: in every step some workers wait for those with a larger share."""
    found, train, batch = [], config.train, config.train.global_batch
    for workers in sorted({train.fewest_workers, train.most_workers}):
        if batch % workers:
            low = batch // workers
            what = f"train.global_batch = {batch}: {workers} workers hold {low} or {low + 1} images and wait for the larger share"
            fix = f"train.global_batch={workers * low} or {workers * (low + 1)}, or a number of workers that divides {batch}"
            found.append(Finding("warning", what, fix))
    return found


def cpus(config: Config, available: float) -> list[Finding]:
    """Too few CPUs for the fewest workers and for what runs besides them."""
    train, fewest = config.train, config.train.fewest_workers
    if (needed := cpus_needed(config, fewest)) <= available:
        return []
    room = math.floor(100 * (available - DATA_TASKS * config.data.cpus_per_task) / (fewest + config.evaluate.background)) / 100
    what = (
        f"train.workers = {json.dumps(train.workers)}: {needed:g} CPUs are needed (workers x {train.cpus_per_worker:g} + "
        f"{_other_cpus(config)}), but the cluster has {available:g}"
    )
    fix = f"train.cpus_per_worker={room:g}" if room > 0 else "fewer train.workers or a larger cluster"
    return [Finding("error", what, fix)]


def crowding(config: Config, available: float, available_gpus: float) -> list[Finding]:
    """Elastic workers that leave too few CPUs for what runs besides them: Ray Train starts as many workers as fit."""
    train, besides = config.train, cpus_beside(config)
    started = workers_started(config, available, available_gpus)
    left = available - started * train.cpus_per_worker
    if started <= train.fewest_workers or left >= besides - 1e-9:
        return []
    fitting = max(train.fewest_workers, math.floor((available - besides) / train.cpus_per_worker + 1e-9))
    what = (
        f"train.workers = {json.dumps(train.workers)}: {started} of them start on a cluster of {available:g} CPUs and leave "
        f"{left:g}, but {besides:g} must be left ({_other_cpus(config)})"
    )
    return [Finding("error", what, f"train.workers=[{train.fewest_workers}, {fitting}]")]


def _other_cpus(config: Config) -> str:
    background = f"validation in the background {config.train.cpus_per_worker:g} + " if config.evaluate.background else ""
    return f"{background}{DATA_TASKS} data tasks x {config.data.cpus_per_task:g}"


def gpus(config: Config, available: float) -> list[Finding]:
    """GPUs that would stay idle, because there is not one for each worker."""
    train, whole = config.train, int(available)
    if not 0 < available < train.fewest_workers:
        return []
    what = f"train.workers = {json.dumps(train.workers)}: the cluster has {available:g} GPUs, fewer than workers: all run on CPUs"
    fix = "a whole GPU for each worker"
    if whole and isinstance(train.workers, int):
        fix = f"train.workers={max(n for n in range(1, whole + 1) if train.global_batch % n == 0)}"
    elif whole:
        fix = f"train.workers=[{whole}, {train.most_workers}]"
    return [Finding("warning", what, fix)]


def background_gpu(config: Config, available_cpus: float, available: float) -> list[Finding]:
    """A validation in the background that waits for the end of training, because the workers hold every GPU."""
    train, started = config.train, workers_started(config, available_cpus, available)
    if not config.evaluate.background or available < train.fewest_workers or available >= started + 1:
        return []
    fix = "evaluate.background=false"
    if (left := int(available) - 1) >= train.fewest_workers:
        fix = f"train.workers=[{train.fewest_workers}, {left}], or {fix}"
    what = (
        f"evaluate.background: validation needs a GPU besides those of the {started} workers, but the cluster has {available:g}: "
        "it waits until training ends"
    )
    return [Finding("warning", what, fix)]


def object_store(config: Config, cluster: Mapping[str, float]) -> list[Finding]:
    """A feed that fills the object store, so that Ray Data holds tasks back or spills crops to disk."""
    available, cpu, fewest = cluster.get("object_store_memory"), cluster.get("CPU", 0), config.train.fewest_workers
    numbers = {fewest, max(fewest, workers_started(config, cpu, cluster.get("GPU", 0)))}
    needed, workers = max((feed_bytes(config, cpu, number), number) for number in numbers)
    if available is None or needed <= OBJECT_STORE_SHARE * available:
        return []
    what = (
        f"data.block_bytes = {config.data.block_bytes}: blocks of {size(block_bytes(config, workers))} on the way to the workers "
        f"need {size(needed)}, over {percent(OBJECT_STORE_SHARE)} of the cluster's object store ({size(available)})"
    )
    tried, step_bytes = config.data.block_bytes, block_bytes(config, workers) // steps_per_block(config, workers)
    while (tried := tried // 2) >= step_bytes:
        smaller = config.model_copy(update={"data": config.data.model_copy(update={"block_bytes": tried})})
        if max(feed_bytes(smaller, cpu, number) for number in numbers) <= OBJECT_STORE_SHARE * available:
            return [Finding("warning", what, f"data.block_bytes={tried}")]
    return [Finding("warning", what, "fewer images per worker, a smaller data.crop_size, or a larger object store")]


def nodes(config: Config) -> list[Finding]:
    """Local folders and files that are not the same on every node of the cluster; an error if training uses them."""
    if not connect.joined():
        return []
    needed = [*shared.of_data(config), *_database(config)]
    weights = config.model.weights
    needed += [Place("model.weights", weights)] if weights and weights not in WEIGHTS_BY_NAME else []
    found = shared.not_shared([*needed, *shared.of_predictions(config)])
    return [Finding("error" if place in needed else "warning", what, place.fix) for place, what in found]


def _database(config: Config) -> list[Place]:
    """The folder of MLflow's database, if it is a file."""
    try:
        scheme, _, file = tracking_uri(config.tracking).partition(":///")
    except TrackingError:  # has its own check
        return []
    fix = "the http:// address of an MLflow server, or a folder that every node mounts"
    return [Place("tracking.uri", str(Path(file).parent), written=True, fix=fix)] if scheme == "sqlite" else []


def disk(config: Config, manifest: Manifest) -> list[Finding]:
    """A local `storage.path` without enough space for a run's checkpoints."""
    if "://" in config.storage.path:
        return []
    one, run = checkpoint_bytes(config, len(manifest.class_names)), Path(config.runs_url, config.run_key)
    # The kept checkpoints, the best and the one being written, minus what the run has written already.
    written = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    needed = max(one, (config.train.keep_checkpoints + 2) * one - written)
    free = shutil.disk_usage(next(p for p in (run, *run.parents) if p.exists())).free
    if free >= 2 * needed:
        return []
    what = (
        f"storage.path = {config.storage.path}: {size(free)} are free, but the run's checkpoints of {size(one)} need "
        f"{size(needed)}"
    )
    fewer = "train.keep_checkpoints=1, " if config.train.keep_checkpoints > 1 else ""
    return [Finding("error" if free < needed else "warning", what, f"{fewer}free some space, or another storage.path")]


def temporary(config: Config, manifest: Manifest) -> list[Finding]:
    """A temporary folder without room for the checkpoint that is written there before it is stored."""
    one, folder = checkpoint_bytes(config, len(manifest.class_names)), tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free >= 2 * one:
        return []
    what = (
        f"temporary folder {folder}: {size(free)} are free, but a checkpoint of {size(one)} is written there before it is stored"
    )
    return [Finding("error" if free < one else "warning", what, "free some space, or set TMPDIR to another folder on every node")]
