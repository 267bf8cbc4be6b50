"""Makes a training crop from an image and its stored label: draws an augmentation and applies it to the crop's pixels alone."""

from fractions import Fraction
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.images.codec import IGNORE, UInt8, as_uint8
from pipeline.images.resize import cut_image, cut_label

# RGB mean of the published recipe, rounded to uint8. Padding has this colour, so it is within half a grey level of 0 once the
# network has subtracted the mean (decision 28).
MEAN_COLOUR = np.array([123, 117, 104], np.uint8)
TRIES = 10  # positions that `cat_max` tries at most


class Recipe(NamedTuple):
    """All settings that shape a training crop, named as in `pipeline.config.data.Data`; `crop` is its `crop_size`."""

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.75, 2.0)
    scale_step: float | None = None
    short_sides: tuple[int, ...] = ()
    flip: bool = True
    cat_max: float | None = None
    photometric: bool = False


class Photometric(NamedTuple):
    """Changes of colour; the defaults change nothing. Saturation and hue are those of OpenCV's 8-bit HSV, hue below 180."""

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_last: bool = False
    saturation: float = 1.0
    hue: int = 0


class Augmentation(NamedTuple):
    """One draw: resize by `factor` to `size`, cut `crop` at (top, left), change the colours, pad, mirror.

    `size` is the whole image's (height, width) after the resize. Without a factor, the image is resized to `size`.
    """

    size: tuple[int, int]
    factor: Fraction | None
    crop: tuple[int, int]
    top: int
    left: int
    mirror: bool
    photometric: Photometric = Photometric()


def augment(
    image: UInt8,
    label: UInt8,
    label_map: UInt8,
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    sample: int,
    stream: int = 0,
) -> tuple[UInt8, UInt8]:
    """Training crop uint8[h, w, 3] RGB and its classes uint8[h, w], both contiguous.

    Takes the image uint8[H, W, 3], the label uint8[H, W] as stored, and label_map uint8[256] from stored id to class or 255.
    Padding outside the image is `MEAN_COLOUR` and class 255. Raises ValueError if image and label differ in size.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"image and label differ in size: {image.shape[:2]} and {label.shape}; both must be [height, width]")
    augmentation = draw(label, label_map, recipe, seed=seed, epoch=epoch, sample=sample, stream=stream)
    return apply(image, label, label_map, augmentation)


def draw(
    label: UInt8,
    label_map: UInt8,
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    sample: int,
    stream: int = 0,
) -> Augmentation:
    """Draws an augmentation from (seed, epoch, sample, stream) alone (law 1); repeats of a sample have different streams.

    Every random number has a fixed place in the generator's sequence, so that a setting changes only what it names.
    The classes of the label matter only for `cat_max`, which may draw the position again.
    """
    key, counter = np.array([seed, epoch << 40 | sample], np.uint64), np.array([0, 0, 0, stream], np.uint64)
    numbers = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(5 + 9 + 2 * (TRIES - 1))
    scale, down, across, mirror, short = numbers[:5].tolist()
    colours, again = numbers[5:14].tolist(), numbers[14:].reshape(-1, 2).tolist()
    height, width = label.shape
    factor: Fraction | None = None
    if recipe.short_sides:
        target = recipe.short_sides[int(short * len(recipe.short_sides))]
        size = round(height * target / min(height, width)), round(width * target / min(height, width))
    else:
        factor = _factor(recipe, scale)
        size = round(height * float(factor)), round(width * float(factor))
        if 0 in size:
            size, factor = (max(1, size[0]), max(1, size[1])), None
    first = Augmentation(
        size, factor, recipe.crop, *_position(size, recipe.crop, down, across), recipe.flip and mirror < 0.5,
        _photometric(colours) if recipe.photometric else Photometric(),
    )  # fmt: skip
    if recipe.cat_max is None or (size[0] <= recipe.crop[0] and size[1] <= recipe.crop[1]):
        return first
    return _varied(label, label_map, first, again, recipe.cat_max)


def apply(image: UInt8, label: UInt8, label_map: UInt8, augmentation: Augmentation) -> tuple[UInt8, UInt8]:
    """The crop of `augment` for one draw; nothing here is random.

    Equals these operations on the whole image, pixel for pixel (held by tests): resize with `cv2.resize` by the factor
    (INTER_LINEAR_EXACT for the image, INTER_NEAREST for the label), cut, change the colours, pad at the bottom and right, mirror.
    """
    size, factor, crop = augmentation[:3]
    pixels = _photometry(cut_image(image, size, factor, _extent(augmentation)), augmentation.photometric)
    classes = as_uint8(cv2.LUT(cut_label(label, size, factor, _extent(augmentation)), label_map))
    if augmentation.mirror:
        pixels, classes = as_uint8(cv2.flip(pixels, 1)), as_uint8(cv2.flip(classes, 1))
    bottom, side = crop[0] - classes.shape[0], crop[1] - classes.shape[1]
    if bottom or side:
        left, right = (side, 0) if augmentation.mirror else (0, side)
        fill = MEAN_COLOUR.tolist()
        pixels = as_uint8(cv2.copyMakeBorder(pixels, 0, bottom, left, right, cv2.BORDER_CONSTANT, value=fill))
        classes = as_uint8(cv2.copyMakeBorder(classes, 0, bottom, left, right, cv2.BORDER_CONSTANT, value=IGNORE))
    return np.ascontiguousarray(pixels), np.ascontiguousarray(classes)


def _factor(recipe: Recipe, number: float) -> Fraction:
    """A random rational factor. Windows can start at multiples of its denominator only (see resize.py), so it must be small."""
    low, high = (Fraction(str(end)) for end in recipe.scale)
    if recipe.scale_step is not None:
        step = Fraction(str(recipe.scale_step))
        return low + step * int(number * (round((high - low) / step) + 1))
    drawn = recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * number
    return min(max(Fraction(round(drawn * 32), 32), low), high)


def _position(size: tuple[int, int], crop: tuple[int, int], down: float, across: float) -> tuple[int, int]:
    return int(down * (max(size[0] - crop[0], 0) + 1)), int(across * (max(size[1] - crop[1], 0) + 1))


def _photometric(numbers: list[float]) -> Photometric:
    """Uses the ranges and probabilities of PhotoMetricDistortion (mmsegmentation, mmseg/datasets/transforms/transforms.py)."""
    brighten, delta, stretch, contrast, last, saturate, saturation, turn, hue = numbers
    return Photometric(
        brightness=64 * delta - 32 if brighten < 0.5 else 0.0,
        contrast=0.5 + contrast if stretch < 0.5 else 1.0,
        contrast_last=last < 0.5,
        saturation=0.5 + saturation if saturate < 0.5 else 1.0,
        hue=int(hue * 37) - 18 if turn < 0.5 else 0,
    )


def _varied(label: UInt8, label_map: UInt8, first: Augmentation, again: list[list[float]], cat_max: float) -> Augmentation:
    """The first of ten positions whose crop has several classes, all below `cat_max` of the labelled pixels; else the tenth.

    This is the rule of RandomCrop in mmsegmentation (cat_max_ratio), but when all ten fail, RandomCrop takes an eleventh position
    unchecked.
    """
    drawn = first
    for top, left in [(first.top, first.left), *(_position(first.size, first.crop, *numbers) for numbers in again)]:
        drawn = first._replace(top=top, left=left)
        # calcHist counts in float32, exact up to 2**24 pixels of one id; it is three times as fast as np.bincount.
        stored = cv2.calcHist([cut_label(label, *drawn[:2], _extent(drawn))], [0], None, [256], [0, 256]).ravel()
        counts = np.bincount(label_map, weights=stored, minlength=256)[:IGNORE]
        if np.count_nonzero(counts) > 1 and counts.max() < cat_max * counts.sum():
            break
    return drawn


def _extent(drawn: Augmentation) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part of the crop that the resized image covers."""
    return drawn.top, drawn.left, min(drawn.crop[0], drawn.size[0]), min(drawn.crop[1], drawn.size[1])


def _photometry(image: UInt8, change: Photometric) -> UInt8:
    """Changes the colours of uint8[h, w, 3] RGB by lookup tables, in the order and with the rounding of mmsegmentation."""
    if change == Photometric():
        return image
    coloured = change.saturation != 1 or change.hue != 0
    ids = np.arange(256)
    bright, contrast = _table(ids + change.brightness), _table(ids * change.contrast)
    early = bright if coloured and change.contrast_last else contrast[bright]
    if (early != ids).any():
        image = as_uint8(cv2.LUT(image, early))
    if coloured:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if change.hue:
            _replace_channel(hsv, 0, _table((ids + change.hue) % 180))
        if change.saturation != 1:
            _replace_channel(hsv, 1, _table(ids * change.saturation))
        image = as_uint8(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
        if change.contrast_last and change.contrast != 1:
            image = as_uint8(cv2.LUT(image, contrast))
    return image


def _replace_channel(image: cv2.typing.MatLike, channel: int, table: UInt8) -> None:
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(image, channel), table), image, channel)


def _table(values: npt.NDArray[Any]) -> UInt8:
    return values.clip(0, 255).astype(np.uint8)
