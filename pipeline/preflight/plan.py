"""A dry run: the data, the size of a training with these settings, and the findings. Trains nothing and stores nothing."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from pipeline.config.config import Config
from pipeline.config.train import Train
from pipeline.data.manifest import Manifest, open_data
from pipeline.data.prepare import survey
from pipeline.data.statistics import class_table, split_table
from pipeline.errors import ConfigError, ShardError, SourceError, StorageError, grouped
from pipeline.formatting import percent, size
from pipeline.loading.blocks import block_bytes, steps_per_block
from pipeline.loading.feed import Feed
from pipeline.preflight import data_checks
from pipeline.preflight.checks import examine
from pipeline.preflight.findings import Finding, report
from pipeline.preflight.resources import checkpoint_bytes, cpus_needed


class Plan(NamedTuple):
    """The dry run of a training."""

    text: str
    """Tables and findings, ready to print."""
    findings: list[Finding]


def plan(config: Config) -> Plan:
    """What `jobs.train` would do and what would stop it. If jobs.prepare has not run, the source is surveyed instead."""
    manifest, origin, found = data(config)
    preflight = examine(config, manifest)
    found += preflight.findings
    parts = [f"{'data':<16}{origin}", report(found)]
    if manifest is not None:
        parts[0] = "\n".join([parts[0], *manifest.files])
        parts[1:1] = [split_table(manifest), class_table(manifest), run_table(config, manifest, preflight.cluster)]
    return Plan("\n\n".join(parts), found)


def data(config: Config) -> tuple[Manifest | None, str, list[Finding]]:
    """(manifest, origin, findings): the prepared data set, or else what its source holds, and why there is neither."""
    try:
        manifest = open_data(config)
        return manifest, f"{config.data_url}  fingerprint {manifest.fingerprint[:16]}", []
    except StorageError as error:
        return None, f"{config.data_url} cannot be opened", [Finding("error", f"storage.path: {error}")]
    except ShardError as error:
        origin = f"{error}\n{'':<16}the source was surveyed instead; nothing was prepared"
    try:
        return survey(config), origin, []
    except StorageError as error:
        return None, origin, [Finding("error", f"data.source: {error}")]
    except SourceError as error:
        return None, origin, [Finding("error", fault) for fault in grouped(error.faults)]
    except ConfigError as error:
        return None, origin, [Finding("error", mistake) for mistake in error.mistakes]


def run_table(config: Config, manifest: Manifest, resources: dict[str, float]) -> str:
    """Table of what a training with these settings amounts to: steps, batch, workers, crop, blocks and checkpoints."""
    train, data, images = config.train, config.data, manifest.num_images("train")
    samples, has, gpus = train.steps * train.global_batch, resources.get("CPU", 0), resources.get("GPU", 0)
    device = "a GPU each" if gpus >= train.fewest_workers else "CPUs"
    cpus = _range(train, lambda workers: f"{cpus_needed(config, workers):g}")
    scale = f"scale {data.scale[0]:g} to {data.scale[1]:g}"
    if data.short_sides:
        scale = f"shorter side {', '.join(map(str, data.short_sides))}"
    rows = [
        ("epoch", f"{images:,} images, {images / train.global_batch:.4g} steps"),
        ("training", f"{train.steps:,} steps, {samples / images:.4g} epochs, {samples:,} samples seen"),
        ("global batch", f"{train.global_batch} = {_range(train, partial(_split, train.global_batch))} images"),
        ("workers", f"{_range(train, str)} on {device}, {cpus} CPUs with the data; cluster: {has:g} CPUs, {gpus:g} GPUs"),
        ("crop", f"{data.crop_size[0]} x {data.crop_size[1]}, {scale}"),
        ("block", f"{_range(train, partial(_block, config))} of a worker"),
        (
            "checkpoint",
            f"{size(checkpoint_bytes(config, len(manifest.class_names)))}, every {_checkpoint_steps(train):,} steps; "
            f"the best and the last {train.keep_checkpoints} are kept",
        ),
        *_options(config),
        *_oversampled(config, manifest),
    ]
    return "\n".join(f"{key:<16}{value}" for key, value in rows)


def _checkpoint_steps(train: Train) -> int:
    """The most steps between two checkpoints."""
    return min(train.checkpoint_every, train.validate_every, train.steps)


def _range(train: Train, of_number: Callable[[int], str]) -> str:
    """The text for the fewest and for the most workers; one text if they are the same."""
    return " to ".join(dict.fromkeys(of_number(workers) for workers in (train.fewest_workers, train.most_workers)))


def _split(global_batch: int, workers: int) -> str:
    """A global batch as `workers x images`; if they do not divide it, some workers hold one image more."""
    low, larger = divmod(global_batch, workers)
    groups = [(larger, low + 1), (workers - larger, low)]
    return " + ".join(f"{number} x {images}" for number, images in groups if number)


def _block(config: Config, workers: int) -> str:
    return f"{size(block_bytes(config, workers))}, {steps_per_block(config, workers)} steps"


def _options(config: Config) -> list[tuple[str, str]]:
    """Rows for the options beyond plain training, and for what ends it early."""
    train, stop = config.train, config.stop
    options = {
        f"from {config.model.weights}": config.model.weights,
        train.precision: train.precision != "float32",
        "compiled": train.compile,
        f"passes of {train.micro_batch} images at most": train.micro_batch,
        f"gradient norm up to {train.clip_norm}": train.clip_norm,
        f"average of weights, {train.ema_decay}": train.ema_decay,
        "backbone's batch norm frozen": train.freeze_norm,
        "validation in the background": config.evaluate.background,
    }
    ends = {
        f"{stop.patience} validations without a better mIoU": stop.patience,
        f"{stop.hours or 0:g} hours": stop.hours,
        f"{(stop.cost or 0) / (stop.cost_per_worker_hour or 1):g} worker hours": stop.cost,
    }
    rows: dict[str, dict[str, Any]] = {"trained with": options, "ends after": ends}
    return [(key, "; ".join(words)) for key, row in rows.items() if (words := [word for word, is_set in row.items() if is_set])]


def _oversampled(config: Config, manifest: Manifest) -> list[tuple[str, str]]:
    if not config.data.oversample or data_checks.oversampling(config, manifest):
        return []
    sampler = Feed(config, manifest, 0, workers=1).sampler
    rows = []
    for stream in sampler.streams:
        name = "all images" if stream.label is None else manifest.class_names[stream.label]
        share, times = percent(stream.per_epoch / sampler.num_samples), stream.per_epoch / stream.num_images
        rows.append((name, f"{share} of an epoch: {stream.num_images:,} images, {times:.3g} times each"))
    return rows
