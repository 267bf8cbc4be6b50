"""From a folder to a trained model: derives a configuration, shows what it comes to, prepares, trains, draws pictures."""

import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np

from ccnet import build_ccnet
from pipeline import own_cores
from pipeline.benchmark.device import own_device, seconds
from pipeline.benchmark.network import training_steps
from pipeline.benchmark.processes import own_peak
from pipeline.cluster import connect
from pipeline.config.base import has_scheme
from pipeline.config.config import Config
from pipeline.config.load import load, override, parse, storage_at
from pipeline.config.model import WEIGHTS_BY_NAME
from pipeline.data.classes import classes
from pipeline.data.prepare import prepare
from pipeline.errors import ConfigError
from pipeline.evaluation.inference import predict_image
from pipeline.evaluation.predict import predict
from pipeline.formatting import size
from pipeline.model.learner import network_arguments
from pipeline.preflight.resources import checkpoint_bytes
from pipeline.start.folder import Folder, look
from pipeline.start.recipe import START_S, Speed, full_steps, nested, schedule, settings, text
from pipeline.training.train import Outcome, train

logger = logging.getLogger(__name__)

PICTURES = 4
"""Images that are predicted at the end."""
MEASURED_STEPS = 2
SHOWN_CLASSES = 8
HEADING = """yaml-language-server: $schema={schema}
Written by `ccnet start {address}` on {day}, for this machine. Change what you like: `ccnet start` and `ccnet
train` use the file as it is. `ccnet train --help` shows all settings."""


class Beginning(NamedTuple):
    """What a training of the folder comes to."""

    config: Config
    file: Path
    folder: Folder
    table: str
    """Ready to print."""


class Result(NamedTuple):
    """What a training of a folder has given."""

    outcome: Outcome
    pictures: str
    """Folder of masks and overlays."""
    faults: list[str]
    """A sentence for each picture that could not be drawn."""
    commands: list[tuple[str, str]]
    """(command, what it does): what to do next, without the name of the program."""


def begin(address: str, overrides: Sequence[str], minutes: float, name: str | None) -> Beginning:
    """Looks at the folder and writes NAME.yaml, which is used as it is if it exists.

    `overrides`: `dotted.key=value` settings that replace derived ones. `name`: by default that of the folder. Raises ConfigError,
    SourceError, StorageError.
    """
    storage = storage_at(address, overrides)
    _refuse_inside(storage.path, str(Path.cwd()), "run the command in another folder (cd ..)")
    folder = look(storage.path, storage)
    name = name or re.sub(r"[^a-z0-9_-]+", "-", folder.address.rpartition("/")[2].lower()).strip("-_") or "mine"
    file = Path(f"{name}.yaml")
    if file.exists():
        return _existing(file, folder, overrides)
    gpus = int(connect.resources().get("GPU", 0))
    found = settings(folder, name, gpus)
    config = parse(nested(found, overrides))
    _refuse_inside(storage.path, config.storage.path, "choose another storage.path")
    speed, peak = _measured(config, folder)
    found |= schedule(folder, config.train.global_batch, speed, minutes)
    tree = nested(found, overrides)
    config = parse(tree)
    why = {key: reason for key, (_, reason) in found.items()} | {
        item.partition("=")[0]: "given on the command line" for item in overrides
    }
    schema = Path(__file__).parents[2] / "jobs/configs/schema.json"
    heading = HEADING.format(schema=schema, address=address, day=time.strftime("%Y-%m-%d"))
    with file.open("x") as new:
        new.write(text(tree, why, heading))
    rows = [
        ("time", f"about {_duration(_run_s(config, folder, speed))} on {_hardware(gpus)}, from {MEASURED_STEPS} measured steps"),
        ("memory", f"{size(peak)} for a worker, besides Ray's own processes"),
    ]
    return Beginning(config, file, folder, _table(folder, config, file, rows))


def finish(beginning: Beginning) -> Result:
    """Prepares, trains and predicts some images of `val`. Run again after an interruption, it resumes."""
    config, folder = beginning.config, beginning.folder
    prepare(config)
    connect.join()
    outcome = train(config)
    drawn = predict(override(config, {"predict.limit": PICTURES}))
    full = full_steps(folder, config.train.global_batch)
    commands = [
        (f"predict {quote(outcome.model_url)} IMAGES... --out FOLDER", "masks and overlays of other images"),
        (f"evaluate {beginning.file}", "the scores again, and those without the attention"),
    ]
    if config.train.steps < full:
        commands.append((f"train {beginning.file} train.steps={full} stop.hours=null", "the full training"))
    pictures = config.predict.output or f"{config.storage.path}/predictions/{config.run_key}"
    return Result(outcome, pictures, drawn.faults, commands)


def _existing(file: Path, folder: Folder, overrides: Sequence[str]) -> Beginning:
    """The configuration of an earlier start, which may have been edited."""
    config = load(file, [*overrides])
    if config.data.source != folder.address:
        raise ConfigError([f"{file}: is of another folder, {config.data.source}: give this one a name: --name NAME"])
    if config.data.classes:
        folder = folder._replace(class_names=classes(config.data.layout, None, config.data.classes).names)
    logger.info("%s: exists and is used as it is; delete it to derive new settings", file)
    return Beginning(config, file, folder, _table(folder, config, file, []))


def _refuse_inside(folder: str, place: str, fix: str) -> None:
    """Raises ConfigError if results at `place` would lie in the user's folder, among its images."""
    here = Path(place).resolve()
    if not has_scheme(folder) and not has_scheme(place) and Path(folder).resolve() in (here, *here.parents):
        raise ConfigError([f"{folder}: results would lie among its images: {fix}"])


def _measured(config: Config, folder: Folder) -> tuple[Speed, int]:
    """The speed of this machine with these settings, and the memory of this process in bytes."""
    logger.info("measuring the speed of this machine: some steps on random pixels ...")
    train, num_classes, (height, width) = config.train, len(folder.class_names), folder.size
    rate = training_steps(config, num_classes, MEASURED_STEPS) * train.most_workers
    scale, device = config.evaluate.scale, own_device()
    net = build_ccnet(**network_arguments(config, num_classes)).eval().to(device)
    image = np.zeros((max(1, round(scale * height)), max(1, round(scale * width)), 3), np.uint8)
    image_s = seconds(lambda: predict_image(net, image, folder.size, device, config.evaluate), device)
    return Speed(train.global_batch / rate, image_s / train.most_workers), own_peak()


def _run_s(config: Config, folder: Folder, speed: Speed) -> float:
    train = config.train
    validations = math.ceil(train.steps / train.validate_every)
    return START_S + train.steps * speed.step_s + validations * folder.num_images["val"] * speed.image_s


def _hardware(gpus: int) -> str:
    return f"{gpus} GPUs" if gpus else f"{own_cores()} CPU cores"


def _duration(duration_s: float) -> str:
    return f"{duration_s / 3600:.1f} hours" if duration_s > 5400 else f"{math.ceil(duration_s / 60)} minutes"


def _table(folder: Folder, config: Config, file: Path, more: Sequence[tuple[str, str]]) -> str:
    """What was found and what will be done, one line each."""
    (height, width), (high, wide), train = folder.size, folder.largest, config.train
    images = ", ".join(f"{number:,} in {split}" for split, number in folder.num_images.items())
    taken = f" (`val` is taken from them: data.val_fraction={folder.val_fraction:g})" if folder.val_fraction else ""
    names = folder.class_names
    shown = ", ".join(names[:SHOWN_CLASSES]) + (f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else "")
    crop = " x ".join(map(str, config.data.crop_size))
    kept = (train.keep_checkpoints + 2) * checkpoint_bytes(config, len(names))
    rows = [
        ("folder", f"{folder.address}  (layout {folder.layout})"),
        ("images", f"{images}{taken}; {height} x {width} (median), at most {high} x {wide}"),
        ("classes", f"{len(names)}: {shown}"),
        ("network", f"{config.model.backbone}, R = {config.model.recurrence}, from {_first_weights(config)}"),
        ("training", f"{train.steps:,} steps of {train.global_batch} crops of {crop} pixels"),
        *more,
        ("disk", f"{size(folder.num_bytes + kept)} below {config.storage.path}"),
        ("settings", f"{file}: each with its reason"),
        *(("note", note) for note in folder.notes),
    ]
    return "\n".join(f"{key:<10}{value}" for key, value in rows)


def _first_weights(config: Config) -> str:
    """The weights that training starts from; for random ones, the settings of better ones."""
    if config.model.weights:
        return config.model.weights
    change = "" if config.model.backbone in WEIGHTS_BY_NAME["imagenet"][0] else "model.backbone=resnet18 "
    return f"random weights; {change}model.weights=imagenet gives a better start"
