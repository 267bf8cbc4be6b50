"""Resizes images and labels, whole or only the part that a crop needs."""

import math
from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.images.codec import UInt8, as_uint8
from pipeline.images.header import MAX_PIXELS

# OpenCV's own threads slow each other down across worker processes and hang after a fork.
cv2.setNumThreads(0)


def resize_image(image: UInt8, scale: float) -> UInt8:
    """Bilinear resize by a factor; each side is rounded and has at least 1 pixel."""
    return resize_to(image, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))


def resize_to(image: UInt8, size: tuple[int, int]) -> UInt8:
    """Bilinear resize to (height, width). Raises MemoryError for more than 2^28 pixels."""
    if image.shape[:2] == size:
        return image
    if math.prod(size) > MAX_PIXELS:
        raise MemoryError(f"{size[1]} x {size[0]} pixels are more than {MAX_PIXELS}")
    return as_uint8(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR))


def resize_label_to(label: UInt8, size: tuple[int, int]) -> UInt8:
    """Nearest-neighbour resize of uint8[H, W] to (height, width)."""
    return as_uint8(cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST))


def cut_image(image: UInt8, size: tuple[int, int], factor: Fraction | None, extent: tuple[int, int, int, int]) -> UInt8:
    """Cuts `extent` = (top, left, h, w) from the image resized by `factor`, or to `size` without one: uint8[h, w, 3], no view.

    Equals `cv2.resize(image, None, fx=factor, fy=factor, interpolation=INTER_LINEAR_EXACT)` and then the cut, pixel for pixel,
    but resizes only the source pixels that the cut needs. `size` must be the size which that call gives: each side times the
    factor, rounded. INTER_LINEAR would differ by 1 in about 0.1% of the values.
    """
    top, left, height, width = extent
    if size == image.shape[:2]:
        return image[top : top + height, left : left + width].copy()
    if factor is None:
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    else:
        rows, above = _window(factor, image.shape[0], top, height)
        columns, before = _window(factor, image.shape[1], left, width)
        window, zoom = image[rows, columns], float(factor)
        if (round(window.shape[0] * zoom), round(window.shape[1] * zoom)) == window.shape[:2]:
            window, above, before = image, 0, 0  # OpenCV copies a window whose size stays the same (a few pixels)
        resized = cv2.resize(window, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR_EXACT)
        top, left = top - above, left - before
    return as_uint8(resized)[top : top + height, left : left + width]


def cut_label(label: UInt8, size: tuple[int, int], factor: Fraction | None, extent: tuple[int, int, int, int]) -> UInt8:
    """Cuts a label in the same way as `cut_image`, but with INTER_NEAREST, value for value: uint8[h, w]."""
    top, left, height, width = extent
    if size == label.shape:
        return np.ascontiguousarray(label[top : top + height, left : left + width])
    # cv2.resize on a window would differ, because it counts from the window's start: floor(39 * (1 / 1.3)) is 29, but a window
    # that starts at pixel 26 gives 20 + floor(13 * (1 / 1.3)) = 30.
    rows, columns = (
        _nearest(side, length / side if factor is None else float(factor), start, count)
        for side, length, start, count in zip(label.shape, size, extent[:2], extent[2:], strict=True)
    )
    cut: UInt8 = label[rows[0] : rows[-1] + 1].take(columns, axis=1).take(rows - rows[0], axis=0)
    return cut


def _nearest(side: int, factor: float, start: int, count: int) -> npt.NDArray[np.intp]:
    """Source indices of `count` resized pixels from `start` on: floor(x * (1 / factor)) in doubles, as OpenCV computes it."""
    return (np.arange(start, start + count) * (1 / factor)).astype(np.intp).clip(max=side - 1)


def _window(factor: Fraction, side: int, start: int, count: int) -> tuple[slice, int]:
    """The source pixels that `count` resized ones from `start` on need, and the position of the first of them after the resize.

    The window begins where a source pixel and a resized pixel begin together. That is every (denominator, numerator) pixels, the
    period of the interpolation weights. A margin of two pixels keeps the window's edges out of the cut.
    """
    first = max(0, start * factor.denominator // factor.numerator - 2) // factor.denominator * factor.denominator
    skipped = first // factor.denominator * factor.numerator
    needed = start + count - skipped
    stop = min(side, first + math.ceil(needed / factor) + 2)
    if round((stop - first) * float(factor)) < needed:
        return slice(0, side), 0  # rounding gives the whole image one more pixel at its end than the window
    return slice(first, stop), skipped
