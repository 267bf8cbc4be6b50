"""Checks of a prepared data set, each finding with its fix. They read no image."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pipeline.config.config import Config
from pipeline.data.labels import unteachable
from pipeline.data.manifest import Manifest, Split
from pipeline.errors import ConfigError
from pipeline.formatting import percent
from pipeline.loading.feed import Feed
from pipeline.loading.user_augment import augment_further, generator
from pipeline.preflight.findings import Finding

MOSTLY_IGNORED = 0.5
"""Share of ignored pixels above which the label map is probably wrong."""
MOSTLY_PADDING = 0.75
"""Share of a crop outside the image above which the crop is probably too large."""
SHOWN = 10
"""Class names listed in one finding."""


def examine(config: Config, manifest: Manifest) -> list[Finding]:
    """Every finding about a data set."""
    left_out = [Finding("warning", *line) for line in manifest.left_out]
    return [
        *left_out,
        *labels(manifest),
        *duplicates(manifest),
        *sizes(config, manifest),
        *oversampling(config, manifest),
        *own_augmentation(config, manifest),
    ]


def labels(manifest: Manifest) -> list[Finding]:
    """Data that teach nothing, splits that are mostly ignored, and classes that training or validation never sees."""
    found = [Finding("error", *reason) for reason in unteachable(manifest)]
    for name, split in manifest.splits.items():
        total = split.ignored + sum(split.pixels)
        if split.ignored <= MOSTLY_IGNORED * total or (split.ignored == total and name != "test"):
            continue
        share = "every pixel is" if split.ignored == total else f"{percent(split.ignored / total)} of the pixels are"
        fix = f"compare the ids in the labels with the label map of layout `{manifest.layout}`"
        found.append(Finding("warning", f"{name}: {share} ignored", fix))
    if "train" in manifest.alike:
        what = "train: every label is the same file, which a network learns without looking at an image"
        found.append(Finding("warning", what, "compare the labels with their images"))
    return found + _unseen(manifest)


def _unseen(manifest: Manifest) -> list[Finding]:
    """Classes without a pixel in train or val. Of a train split with fewer than two, `unteachable` says that instead."""
    found, train, val = [], manifest.splits["train"], manifest.splits.get("val")
    seen = {k for split in manifest.splits.values() for k, pixels in enumerate(split.pixels) if pixels}
    dead = [k for k, pixels in enumerate(train.pixels) if not pixels] if _present(train) > 1 else []
    if absent := [k for k in dead if k not in seen]:
        fix = "compare the ids in the labels with the label map, or leave these classes out of it"
        found.append(Finding("warning", f"no split has a pixel of {_classes(manifest, absent)}", fix))
    if untaught := [k for k in dead if k in seen]:
        fix = "move images of these classes to train, or ignore the classes: their IoU will be 0"
        found.append(Finding("warning", f"train has no pixel of {_classes(manifest, untaught)}, which other splits contain", fix))
    if val and any(val.pixels) and (unscored := [k for k in seen if not val.pixels[k]]):
        fix = f"move images of these classes to val: mIoU is over {_present(val)} of {len(manifest.class_names)} classes"
        found.append(Finding("warning", f"val has no pixel of {_classes(manifest, unscored)}, which other splits contain", fix))
    return found


def _present(split: Split) -> int:
    return sum(map(bool, split.pixels))


def duplicates(manifest: Manifest) -> list[Finding]:
    """Images that occur in more than one split, byte for byte."""
    if not manifest.num_duplicates:
        return []
    shown = ", ".join(" = ".join(pair) for pair in manifest.duplicates[:3])
    more = ", ..." if manifest.num_duplicates > 3 else ""
    number = "1 image occurs" if manifest.num_duplicates == 1 else f"{manifest.num_duplicates} images occur"
    if manifest.splits.keys() == {"train", "val"} and manifest.num_duplicates == manifest.num_images("val"):
        number = "every image of val occurs"  # the score shows what was learnt by heart
    what = f"{number} in more than one split, byte for byte: {shown}{more}"
    return [Finding("warning", what, "keep each image in one split (data.lists): scores on training images are too high")]


def sizes(config: Config, manifest: Manifest) -> list[Finding]:
    """Crops that the scaled training images do not fill."""
    crop, train = config.data.crop_size, manifest.splits["train"]
    if shorter := config.data.short_sides:
        if max(shorter) >= min(crop):  # how long the longer sides are depends on each image
            return []
        what = f"data.crop_size = {list(crop)}: every crop is padded: the shorter side is at most {max(shorter)}"
        return [Finding("warning", what, "a smaller data.crop_size, or larger data.short_sides")]
    largest, smallest = _scaled(config, train.largest, max), _scaled(config, train.smallest, min)
    what = f"data.crop_size = {list(crop)}: "
    if any(side < limit for side, limit in zip(largest, crop, strict=True)):
        fits = [min(limit, max(17, (side - 1) // 8 * 8 + 1)) for side, limit in zip(largest, crop, strict=True)]
        what += f"every crop is padded: even the largest image, scaled up, is only {_by(largest)} (height x width)"
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
    for stream in Feed(config, manifest, 0, workers=1).sampler.oversampled:
        if not stream.per_epoch and stream.label is not None:
            number = manifest.num_images("train")
            what = f"data.oversample.{names[stream.label]}: its share of an epoch of {number} images is less than one image"
            found.append(Finding("warning", what, "raise its weight"))
    return found


def own_augmentation(config: Config, manifest: Manifest) -> list[Finding]:
    """What is wrong with `data.augment`, found by a call with a crop of zeros."""
    name, crop = config.data.augment, config.data.crop_size
    if name is None:
        return []
    try:
        image, label = np.zeros((*crop, 3), np.uint8), np.zeros(crop, np.uint8)
        augment_further(name, image, label, len(manifest.class_names), generator(config.seed, 0, 0, 0))
    except ConfigError as error:
        return [Finding("error", mistake) for mistake in error.mistakes]
    except Exception as error:  # of any type: it is the user's code
        what = str(error) if str(error).startswith("data.augment") else f"data.augment = {name}: {type(error).__name__}: {error}"
        return [Finding("error", what, "called with an image and a label of zeros")]
    return []


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"


def _classes(manifest: Manifest, numbers: Sequence[int]) -> str:
    names = [manifest.class_names[number] for number in numbers]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} of the {len(manifest.class_names)} classes: {', '.join(names[:SHOWN])}{more}"
