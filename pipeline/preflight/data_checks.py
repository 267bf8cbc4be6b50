"""What is wrong or doubtful with data, settings and cluster, each with its fix, before a GPU is taken; reads no image."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.config.config import Config
from pipeline.data.shards import Manifest
from pipeline.formatting import percent, size
from pipeline.loading.feed import Feed
from pipeline.preflight import training_checks
from pipeline.preflight.findings import Finding
from pipeline.preflight.resources import DATA_TASKS, checkpoint_bytes, cpus_beside, cpus_needed, feed_bytes, workers_started
from pipeline.storage import store

MOSTLY_IGNORED = 0.5
"""Share of ignored pixels above which the label map is doubted."""
MOSTLY_PADDING = 0.75
"""Share of a crop beyond the image above which the crop is doubted."""
OBJECT_STORE_SHARE = 0.5
"""Share of the cluster's object store that Ray Data fills before it holds its tasks back (its own default)."""
SHOWN = 10
"""Class names listed in one finding."""


def examine(config: Config, manifest: Manifest, cluster: Mapping[str, float]) -> list[Finding]:
    """Every finding about a data set and a run on it, errors first, in well under two seconds.

    `cluster` is what `ray.cluster_resources()` says: CPU, GPU and object_store_memory in bytes.
    """
    found = [
        *labels(manifest),
        *duplicates(manifest),
        *sizes(config, manifest),
        *oversampling(config, manifest),
        *training_checks.examine(config, manifest, cluster),
        *resources(config, cluster),
        *disk(config, manifest),
    ]
    return sorted(found, key=lambda finding: finding.level)


def labels(manifest: Manifest) -> list[Finding]:
    """Splits that are mostly or wholly ignored, and classes that training never sees."""
    found, train = [], manifest.splits["train"]
    for name, split in manifest.splits.items():
        total = split.ignored + sum(split.pixels)
        if not total or split.ignored <= MOSTLY_IGNORED * total:
            continue
        whole = split.ignored == total
        # A published test split has no labels; without those of train and val there is nothing to learn or to choose by.
        level: Literal["error", "warning"] = "error" if whole and name != "test" else "warning"
        share = "every pixel is" if whole else f"{percent(split.ignored / total)} of the pixels are"
        fix = f"compare the ids in the labels with the label map of layout `{manifest.layout}`"
        found.append(Finding(level, f"{name}: {share} ignored", fix))
    dead = [k for k, pixels in enumerate(train.pixels) if not pixels] if any(train.pixels) else []
    seen = {k for split in manifest.splits.values() for k, pixels in enumerate(split.pixels) if pixels}
    if absent := [k for k in dead if k not in seen]:
        fix = "compare the ids in the labels with the label map, or leave these classes out of it"
        found.append(Finding("warning", f"no split has a pixel of {_classes(manifest, absent)}", fix))
    if untaught := [k for k in dead if k in seen]:
        fix = "move images of these classes to train, or ignore the classes: their IoU will be 0"
        found.append(Finding("warning", f"train has no pixel of {_classes(manifest, untaught)}, which other splits score", fix))
    return found


def duplicates(manifest: Manifest) -> list[Finding]:
    """Images that occur in more than one split, byte for byte."""
    if not manifest.num_duplicates:
        return []
    shown = ", ".join(" = ".join(pair) for pair in manifest.duplicates[:3])
    more = ", ..." if manifest.num_duplicates > 3 else ""
    number = "1 image occurs" if manifest.num_duplicates == 1 else f"{manifest.num_duplicates} images occur"
    what = f"{number} in more than one split, byte for byte: {shown}{more}"
    return [Finding("warning", what, "keep each in one split (data.lists): scores on images of the training are too good")]


def sizes(config: Config, manifest: Manifest) -> list[Finding]:
    """Crops that the training images, as they are scaled, do not fill."""
    crop, train = config.data.crop, manifest.splits["train"]
    if shorter := config.data.short_sides:
        if max(shorter) >= min(crop):  # how long the longer sides are depends on each image
            return []
        what = f"data.crop_size = {list(crop)}: every crop is padded, for the shorter side is at most {max(shorter)}"
        return [Finding("warning", what, "a smaller data.crop_size, or larger data.short_sides")]
    largest, smallest = _scaled(config, train.largest, max), _scaled(config, train.smallest, min)
    what = f"data.crop_size = {list(crop)}: "
    if any(side < limit for side, limit in zip(largest, crop, strict=True)):
        fits = [min(limit, max(17, (side - 1) // 8 * 8 + 1)) for side, limit in zip(largest, crop, strict=True)]
        what += f"every crop is padded, for the largest image, scaled up, is {_by(largest)} (height x width)"
        return [Finding("warning", what, f"data.crop_size={fits}, or a larger data.scale")]
    filled = math.prod(min(side, limit) for side, limit in zip(smallest, crop, strict=True)) / math.prod(crop)
    if 1 - filled > MOSTLY_PADDING:
        what += f"the smallest image, scaled down to {_by(smallest)} (height x width), leaves {percent(1 - filled)} padding"
        return [Finding("warning", what, "a smaller data.crop_size, or raise the low end of data.scale")]
    return []


def _scaled(config: Config, sides: tuple[int, int], end: Callable[[Iterable[float]], float]) -> tuple[int, int]:
    """(height, width) of an image at the `end`, min or max, of the configured scales."""
    scale = end(config.data.scale)
    return round(sides[0] * scale), round(sides[1] * scale)


def oversampling(config: Config, manifest: Manifest) -> list[Finding]:
    """Classes of `data.oversample` that do not exist or that no training image contains."""
    found, names = [], manifest.class_names
    for name in config.data.oversample:
        if name not in names:
            found.append(Finding("error", f"data.oversample.{name}: no such class", f"legal: {', '.join(names)}"))
        elif not manifest.splits["train"].images[names.index(name)]:
            found.append(Finding("error", f"data.oversample.{name}: no training image contains it", "leave it out"))
    if found:
        return found
    for stream in Feed(config, manifest, 0, workers=1).plan.oversampled:
        if not stream.per_epoch and stream.label is not None:
            what = f"data.oversample.{names[stream.label]}: its share of an epoch of {manifest.num_images('train')} is no image"
            found.append(Finding("warning", what, "raise its weight"))
    return found


def resources(config: Config, cluster: Mapping[str, float]) -> list[Finding]:
    """What the cluster lacks for a run, and a batch that its workers cannot share evenly; known without the data."""
    cpu, gpu = cluster.get("CPU", 0), cluster.get("GPU", 0)
    return [
        *shares(config),
        *cpus(config, cpu),
        *crowding(config, cpu, gpu),
        *gpus(config, gpu),
        *gpu_apart(config, cpu, gpu),
        *object_store(config, cluster),
    ]


def shares(config: Config) -> list[Finding]:
    """Workers that wait for others in every step, because their number does not divide the batch."""
    found, train, batch = [], config.train, config.train.global_batch
    for workers in sorted({train.fewest_workers, train.most_workers}):
        if batch % workers:
            low = batch // workers
            what = f"train.global_batch = {batch}: {workers} workers hold {low} or {low + 1} images and wait for the larger share"
            fix = f"train.global_batch={workers * low} or {workers * (low + 1)}, or as many workers as divide {batch}"
            found.append(Finding("warning", what, fix))
    return found


def cpus(config: Config, available: float) -> list[Finding]:
    """Too few CPUs for the workers, the fewest that may be, and what runs beside them."""
    train, fewest = config.train, config.train.fewest_workers
    if (needed := cpus_needed(config, fewest)) <= available:
        return []
    apart = config.evaluate.apart
    room = math.floor(100 * (available - DATA_TASKS * config.data.cpus_per_task) / (fewest + apart)) / 100
    what = (
        f"train.workers = {json.dumps(train.workers)}: {needed:g} CPUs are needed (workers x {train.cpus_per_worker:g} + "
        f"{_beside(config)}), the cluster has {available:g}"
    )
    fix = f"train.cpus_per_worker={room:g}" if room > 0 else "fewer train.workers or a larger cluster"
    return [Finding("error", what, fix)]


def crowding(config: Config, available: float, available_gpus: float) -> list[Finding]:
    """So many elastic workers that they leave too few CPUs for what runs beside: Ray Train starts as many as fit."""
    train, beside = config.train, cpus_beside(config)
    started = workers_started(config, available, available_gpus)
    left = available - started * train.cpus_per_worker
    if started <= train.fewest_workers or left >= beside - 1e-9:
        return []
    fitting = max(train.fewest_workers, math.floor((available - beside) / train.cpus_per_worker + 1e-9))
    what = (
        f"train.workers = {json.dumps(train.workers)}: {started} of them start on a cluster of {available:g} CPUs and leave "
        f"{left:g}, {beside:g} are needed beside them ({_beside(config)})"
    )
    return [Finding("error", what, f"train.workers=[{train.fewest_workers}, {fitting}]")]


def _beside(config: Config) -> str:
    apart = f"validation apart {config.train.cpus_per_worker:g} + " if config.evaluate.apart else ""
    return f"{apart}{DATA_TASKS} data tasks x {config.data.cpus_per_task:g}"


def gpus(config: Config, available: float) -> list[Finding]:
    """GPUs that would lie idle, because there is not one for each worker."""
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


def gpu_apart(config: Config, available_cpus: float, available: float) -> list[Finding]:
    """A validation apart that waits for the end of training, because the workers hold every GPU."""
    train, started = config.train, workers_started(config, available_cpus, available)
    if not config.evaluate.apart or available < train.fewest_workers or available >= started + 1:
        return []
    fix = "evaluate.apart=false"
    if (left := int(available) - 1) >= train.fewest_workers:
        fix = f"train.workers=[{train.fewest_workers}, {left}], or {fix}"
    what = (
        f"evaluate.apart: validation needs a GPU beside those of the {started} workers, the cluster has {available:g}: it waits "
        "until training ends"
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
        f"data.block_bytes = {config.data.block_bytes}: blocks of {size(config.block_bytes(workers))} on the way to the workers "
        f"need {size(needed)}, over {percent(OBJECT_STORE_SHARE)} of the cluster's object store ({size(available)})"
    )
    tried, step_bytes = config.data.block_bytes, config.block_bytes(workers) // config.steps_per_block(workers)
    while (tried := tried // 2) >= step_bytes:
        smaller = config.model_copy(update={"data": config.data.model_copy(update={"block_bytes": tried})})
        if max(feed_bytes(smaller, cpu, number) for number in numbers) <= OBJECT_STORE_SHARE * available:
            return [Finding("warning", what, f"data.block_bytes={tried}")]
    return [Finding("warning", what, "fewer images per worker, a smaller data.crop_size, or a larger object store")]


def disk(config: Config, manifest: Manifest) -> list[Finding]:
    """A local `storage.path` without the space for a run's checkpoints."""
    if "://" in config.storage.path:
        return []
    one, run = checkpoint_bytes(config, len(manifest.class_names)), Path(config.runs_url, config.run_key)
    # The kept ones, the best, and the one being written; those that the run already wrote are not written again.
    written = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    needed = max(one, (config.train.keep_checkpoints + 2) * one - written)
    free = shutil.disk_usage(next(p for p in (run, *run.parents) if p.exists())).free
    if free >= 2 * needed:
        return []
    what = (
        f"storage.path = {config.storage.path}: {size(free)} are free, the run's checkpoints of {size(one)} need {size(needed)}"
    )
    fewer = "train.keep_checkpoints=1, " if config.train.keep_checkpoints > 1 else ""
    return [Finding("error" if free < needed else "warning", what, f"{fewer}free some, or another storage.path")]


def buckets(config: Config, checked: Sequence[str] = ()) -> list[Finding]:
    """Buckets named by the configuration that refuse what its jobs do there, each asked once; `checked` are known to be fine.

    Errors are those a training needs; others, which another verb would stumble on later, are warnings.
    """
    found, done = [], {bucket for url in checked if (bucket := _bucket(url))}
    for setting, url, needed, proof in _addresses(config):
        bucket = _bucket(url)
        # Originals that training reads are looked at wherever they lie: a folder may have moved, a prefix be empty.
        in_place = setting == "data.source" and needed
        if not in_place and (not bucket or bucket in done):
            continue
        done.add(bucket)
        try:
            proof(store.open_store(url, config.storage))
        except store.StorageError as error:
            found.append(Finding("error" if needed else "warning", f"{setting}: {error}"))
    return found


def _addresses(config: Config) -> Iterator[tuple[str, str, bool, Callable[[store.Store], None]]]:
    """(setting, address, whether training needs it, how to prove it); what is written comes first, for that proves more."""
    predict, export, data = config.predict, config.export, config.data
    yield "storage.path", config.storage.path, True, store.check
    if predict.output:
        yield "predict.output", predict.output, False, store.check
    if export.output:
        yield "export.output", export.output.rpartition("/")[0], False, store.check
    if data.source:  # of a packed data set only jobs.prepare reads it
        yield "data.source", data.source, not data.packed, partial(store.check_readable, setting="data.source")
    if predict.images:
        yield "predict.images", predict.images, False, partial(store.check_readable, setting="predict.images")


def _bucket(url: str) -> str:
    """The bucket of an address, empty for a folder."""
    return url.removeprefix("s3://").partition("/")[0] if url.startswith("s3://") else ""


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"


def _classes(manifest: Manifest, numbers: Sequence[int]) -> str:
    names = [manifest.class_names[number] for number in numbers]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} of the {len(manifest.class_names)} classes: {', '.join(names[:SHOWN])}{more}"
