"""Settings for a folder of images and masks, derived from sizes and counts, each with its reason; and their YAML text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config.load import apply
from pipeline.config.settings_yaml import flow
from pipeline.errors import ConfigError
from pipeline.start.folder import Folder

SHORT_SIDE = {"cpu": 180, "gpu": 512}
"""Pixels of an image's shorter side, scaled. On CPUs as in jobs/configs/camvid.yaml, which docs/results.md measures."""
BATCH = {"cpu": 8, "gpu": 16}
CROP = 0.72
"""Side of the crop as a share of the scaled image, as in jobs/configs/camvid.yaml."""
EPOCHS, FEWEST_STEPS = 40, 1000
"""Length of the full training."""
VALIDATIONS, VALIDATION_SHARE = 5, 0.25
"""Validations of a run, and the share of its time that they may take; the last one is always done."""
START_S = 45
"""Seconds of a run that are not training: two cores start Ray, its workers and the first batch."""
CHECKPOINT_S = 60
"""Seconds of training between two checkpoints."""

Settings = dict[str, tuple[Any, str]]
"""Dotted key -> (value, reason)."""


class Speed(NamedTuple):
    """What one device of this machine does with the settings, measured."""

    step_s: float
    """Seconds of a training step."""
    image_s: float
    """Seconds of the prediction of one image of median size."""


def settings(folder: Folder, name: str, gpus: int) -> Settings:
    """All settings that do not depend on the speed of the machine."""
    device, (height, width), short = "gpu" if gpus else "cpu", folder.size, min(folder.size)
    scale = round(min(1.0, SHORT_SIDE[device] / short), 2)
    crop = [_side(CROP * scale * height), _side(CROP * scale * width)]
    workers = max(1, gpus)
    batch = max(2 * workers, min(BATCH[device], folder.num_images["train"]))
    where = f"{gpus} GPUs" if gpus else "no GPU"
    small = f"images are {height} x {width} (height x width, median)"
    found: Settings = {
        "name": (name, ""),
        "storage.path": ("outputs", "data, checkpoints, model and pictures; a bucket works too: s3://bucket/prefix"),
        "data.name": (name, ""),
        "data.layout": (folder.layout, "recognised by its folders"),
        "data.source": (folder.address, ""),
    }
    if folder.val_fraction:
        found["data.val_fraction"] = (folder.val_fraction, "there is no split `val`: this share of the images measures the score")
    if folder.entries:
        found["data.classes"] = (folder.entries, "what the masks hold; give the classes their names: other names are another run")
    return found | {
        "data.crop_size": (crop, f"about {CROP:.0%} of the scaled image, as 8k + 1"),
        "data.scale": ([round(0.8 * scale, 3), round(1.6 * scale, 3)], f"random zoom around {scale:g}"),
        "model.backbone": ("resnet18", "learns from random weights; model.weights=imagenet fetches a better start"),
        "model.recurrence": (2, "passes of the attention, as in the paper"),
        "train.workers": (workers, f"{where}: one process {'for each' if gpus else 'for all cores'}"),
        "train.global_batch": (batch, f"{folder.num_images['train']} training images; memory and batch norm want 8 to 16"),
        "train.learning_rate": (0.05 * batch / 8, "0.05 for 8 images, from random weights"),
        "train.weight_decay": (5e-4, "of the published script"),
        "evaluate.scale": (scale, f"{small}: {where}, so the shorter side is scaled to {round(scale * short)}"),
        "tracking.experiment": (name, "where MLflow lists the runs"),
    }


def schedule(folder: Folder, batch: int, speed: Speed, minutes: float) -> Settings:
    """Steps, validations and checkpoints of a training that ends within `minutes`."""
    full = full_steps(folder, batch)
    available = max(0.0, 60 * minutes - START_S)
    validation_s = folder.num_images["val"] * speed.image_s
    times = max(1, min(VALIDATIONS, int(VALIDATION_SHARE * available / validation_s)))
    steps = max(10, min(full, int((available - times * validation_s) / speed.step_s)))
    epochs = steps * batch / folder.num_images["train"]
    why = f"{epochs:.3g} epochs; a step takes {speed.step_s:.2g} s here"
    if steps < full:
        why += f", and more would not fit into {minutes:g} minutes: the full training has {full:,}"
    every = math.ceil(steps / times)
    return {
        "train.steps": (steps, why),
        "train.warmup_steps": (min(100, steps // 10), "the rate rises over the first tenth"),
        "train.validate_every": (every, f"a validation of {folder.num_images['val']} images takes about {validation_s:.0f} s"),
        "train.checkpoint_every": (max(1, min(every, int(CHECKPOINT_S / speed.step_s))), "about a minute: what a crash costs"),
        "stop.hours": (round(minutes / 60, 4), f"{minutes:g} minutes; a larger value resumes the run"),
    }


def full_steps(folder: Folder, batch: int) -> int:
    """Steps of the full training."""
    return max(FEWEST_STEPS, math.ceil(EPOCHS * folder.num_images["train"] / batch))


def nested(found: Settings, overrides: Sequence[str]) -> dict[str, Any]:
    """The nested mapping of settings, with the overrides. Raises ConfigError for overrides that have another form."""
    tree: dict[str, Any] = {}
    for key, (value, _) in found.items():
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    if mistakes := apply(tree, overrides):
        raise ConfigError(mistakes)
    return tree


def text(tree: Mapping[str, Any], why: Mapping[str, str], heading: str) -> str:
    """A configuration as YAML, with the reason behind each setting; `why`: dotted key -> reason."""
    return "\n".join([*(f"# {line}" for line in heading.splitlines()), *_lines(tree, why, "", "")]) + "\n"


def _lines(tree: Mapping[str, Any], why: Mapping[str, str], prefix: str, indent: str) -> Iterator[str]:
    for key, value in tree.items():
        reason = why.get(f"{prefix}{key}", "")
        comment = f"  # {reason}" if reason else ""
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:{comment}"
            yield from _lines(value, why, f"{prefix}{key}.", f"{indent}  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{key}:{comment}"
            yield from (f"{indent}  - {flow(each)}" for each in value)
        else:
            yield f"{indent}{key}: {flow(value)}{comment}"


def _side(pixels: float) -> int:
    """The nearest 8k + 1, at least 17."""
    return max(17, 8 * round((pixels - 1) / 8) + 1)
