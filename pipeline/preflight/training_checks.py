"""Checks of how a run starts, trains and ends, each finding with its fix."""

import math
import os
import shutil
from collections.abc import Mapping

from ccnet import build_ccnet
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.errors import ConfigError, StorageError
from pipeline.loading.sampler import largest_share
from pipeline.model.learner import network_arguments, objective
from pipeline.model.pretrained import load_pretrained, read_pretrained
from pipeline.preflight.findings import Finding


def examine(config: Config, manifest: Manifest, cluster: Mapping[str, float]) -> list[Finding]:
    """Every finding except those of `weights`."""
    return [
        *losses(config, manifest),
        *precision(config, cluster.get("GPU", 0)),
        *compiler(config),
        *frozen(config),
        *random_start(config),
        *placed(config),
        *passes(config),
        *without_effect(config),
    ]


def losses(config: Config, manifest: Manifest) -> list[Finding]:
    """Class weights that do not fit the classes, and hard-pixel mining that keeps every pixel.

    Mining is checked here because its warning would be silent in a worker.
    """
    found, weights, number = [], config.loss.class_weights, len(manifest.class_names)
    if weights is not None and len(weights) != number:
        what = f"loss.class_weights has {len(weights)} values: {config.data.name} has {number} classes"
        found.append(Finding("error", what, "give one for each class"))
    hard = objective(config.loss, config.train.global_batch).ohem
    if problem := hard and hard.problem(config.train.global_batch, *config.data.crop_size):
        what, _, fix = problem.rpartition("; ")
        found.append(Finding("warning", f"loss.ohem.{what}", fix))
    return found


def precision(config: Config, gpus: float) -> list[Finding]:
    """A narrow precision on CPUs that may lack the instructions for it."""
    train, kind = config.train, config.train.precision
    if kind == "float32" or gpus >= train.fewest_workers:
        return []
    cpus = "CPUs without AVX512-BF16 or AMX" if kind == "bf16" else "CPUs"
    what = f"train.precision = {kind}: the run is on CPUs, and on {cpus} a step takes many times as long as in float32"
    return [Finding("warning", what, "train.precision=float32")]


def compiler(config: Config) -> list[Finding]:
    """`train.compile` without the compiler that torch.compile calls by default."""
    name = os.environ.get("CXX", "g++")
    if not config.train.compile or shutil.which(name):
        return []
    what = f"train.compile: no C++ compiler `{name}` on this machine, and the machine of each worker needs one"
    return [Finding("warning", what, "install it, name another in CXX, or train.compile=false")]


def frozen(config: Config) -> list[Finding]:
    """Frozen batch norm without pretrained statistics, which normalises nothing."""
    if not config.train.freeze_norm or config.model.weights:
        return []
    what = "train.freeze_norm: without model.weights the backbone has statistics of 0 and 1, and keeps them"
    return [Finding("warning", what, "model.weights=..., or leave train.freeze_norm out")]


def random_start(config: Config) -> list[Finding]:
    """A large backbone without ImageNet weights, with which every published score was reached. Generated images are trials."""
    model = config.model
    if model.weights or model.backbone not in ("resnet50", "resnet101") or config.data.layout == "generated":
        return []
    what = f"model.weights: {model.backbone} starts from random weights, and published scores are those of an ImageNet backbone"
    return [Finding("warning", what, "model.weights=imagenet, or model.backbone=resnet18")]


def placed(config: Config) -> list[Finding]:
    """Crops in which the cells of a network that does not align corners lie elsewhere than in images of 8k pixels."""
    model, crop = config.model, config.data.crop_size
    if model.variant != "mmseg" or model.align_corners is not False or not any(side % 8 for side in crop):
        return []
    what = f"data.crop_size = {list(crop)}: with model.align_corners=false features and pixels align in crops of 8k pixels"
    return [Finding("warning", what, f"data.crop_size={[side // 8 * 8 for side in crop]}")]


def passes(config: Config) -> list[Finding]:
    """Batch norm over passes whose images depend on the number of workers."""
    train = config.train
    elastic = train.fewest_workers < train.most_workers
    if not (elastic and train.micro_batch and train.micro_batch < largest_share(train.global_batch, train.fewest_workers)):
        return []
    if train.freeze_norm:
        return []
    what = f"train.micro_batch = {train.micro_batch}: the images that batch norm averages over depend on the number of workers"
    return [Finding("warning", what, "train.freeze_norm=true, or leave it out")]


def without_effect(config: Config) -> list[Finding]:
    """Settings that have no effect together with the others."""
    found, train, stop = [], config.train, config.stop
    largest = largest_share(train.global_batch, train.fewest_workers)
    if train.micro_batch and train.micro_batch > largest:
        what = f"train.micro_batch = {train.micro_batch}: no effect, because a worker has at most {largest} images a step"
        found.append(Finding("warning", what, "set it lower, or leave it out"))
    reached = train.steps / (train.steps + 9)  # the decay of ccnet.Average at the last step
    if train.ema_decay and train.ema_decay > reached:
        what = f"train.ema_decay = {train.ema_decay:g}: never reached, because it rises to {reached:.4g} in {train.steps} steps"
        found.append(Finding("warning", what, f"at most train.ema_decay={math.floor(1000 * reached) / 1000}, or leave it out"))
    validations = math.ceil(train.steps / train.validate_every)
    if stop.patience and stop.patience >= validations - 1:  # the first is always the best so far
        what = f"stop.patience = {stop.patience}: no effect, because the run validates only {validations} times"
        found.append(Finding("warning", what, "set it lower, or validate more often: train.validate_every"))
    return found


def weights(config: Config, num_classes: int) -> list[Finding]:
    """Mistakes in `model.weights`, found by loading the file into a network; from a bucket this takes some seconds."""
    try:
        if initial := read_pretrained(config):
            load_pretrained(build_ccnet(**network_arguments(config, num_classes)), initial, num_classes)
    except ConfigError as error:
        return [Finding("error", mistake) for mistake in error.mistakes]
    except (StorageError, ValueError) as error:
        return [Finding("error", f"model.weights = {config.model.weights}: {error}")]
    return []
