"""How an image is scored: windows, scales and orientations, each checked."""

from collections.abc import Sequence
from math import ceil, inf
from numbers import Integral, Real
from typing import NamedTuple


class Scheme(NamedTuple):
    """The windows, scales and orientations in which to score an image; `window` and `stride` as (height, width).

    `align_corners` is how the net's scores are resized.
    """

    window: tuple[int, int] | None
    stride: tuple[int, int]
    scales: Sequence[float]
    flip: bool
    align_corners: bool = True


def published_stride(window: tuple[int, int]) -> tuple[int, int]:
    """The published code's stride (height, width): two thirds of the window's height, rounded up; in width at most its width."""
    # In floating point exactly as published: 33 * (1 - 1/3) is above 22, so the stride is 23.
    stride = ceil(window[0] * (1 - 1 / 3))
    return stride, min(stride, window[1])


def checked(
    window: int | tuple[int, int] | None, stride: int | tuple[int, int] | None, scales: Sequence[float], flip: bool
) -> Scheme:
    listed = isinstance(scales, tuple | list) and len(scales) > 0
    if not listed or not all(isinstance(scale, Real) and 0 < scale < inf for scale in scales):
        raise ValueError(f"scales = {scales!r}: must be one or more numbers > 0, in a sequence (try (1.0,))")
    if window is None:
        if stride is not None:
            raise ValueError(f"stride = {stride} without a window: give window too (the published one is 769), or neither")
        return Scheme(None, (1, 1), scales, flip)
    height, width = _pair("window", window, "the published one is 769")
    if min(height, width) < 1:
        raise ValueError(f"window = {window}: must be at least 1 (the published one is 769)")
    if stride is None:
        stride = published_stride((height, width))
    down, right = _pair("stride", stride, "by default two thirds of the window")
    legal = (min(max(down, 1), height), min(max(right, 1), width))
    if (down, right) != legal:
        raise ValueError(f"stride = {stride}: must be 1 to {(height, width)}, the window; more skips pixels (try {legal})")
    return Scheme((height, width), (down, right), scales, flip)


def sized(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """`size` as given. ValueError unless it is None or (height, width), each at least 1."""
    legal = isinstance(size, tuple | list) and len(size) == 2 and all(_whole(pixels) and pixels > 0 for pixels in size)
    if size is not None and not legal:
        raise ValueError(f"size = {size!r}: must be (height, width) in pixels, or None for the image's own")
    return size


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _pair(name: str, value: int | tuple[int, int], hint: str) -> tuple[int, int]:
    """The value as (height, width). ValueError unless it is one integer or two."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(_whole, pair)):
        raise ValueError(f"{name} = {value!r}: must be an integer, or two as (height, width) ({hint})")
    return pair[0], pair[1]
