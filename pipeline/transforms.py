"""Decode, draw an augmentation, apply it: the one place that knows OpenCV."""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]

IGNORE = 255
# OpenCV's own threads slow each other down across worker processes and hang after a fork.
cv2.setNumThreads(0)


def decode_image(data: bytes) -> UInt8:
    """uint8[H, W, 3] RGB from an encoded image. Raises ValueError when it does not decode."""
    return _decode(data, cv2.IMREAD_COLOR_RGB)


def decode_label(data: bytes) -> UInt8:
    """uint8[H, W] from an 8-bit single-channel image, values untouched. Raises ValueError otherwise."""
    label = _decode(data, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"a label is an 8-bit image of one channel, found {label.dtype} of shape {label.shape}")
    return label


def _decode(data: bytes, flags: int) -> UInt8:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if len(data) else None
    if image is None:
        raise ValueError(f"not a readable image ({len(data)} bytes)")
    return image  # type: ignore[return-value]


def encode_png(image: UInt8) -> bytes:
    """PNG bytes of uint8[H, W, 3] RGB or uint8[H, W]."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} as PNG")
    return data.tobytes()


def resize_image(image: UInt8, scale: float) -> UInt8:
    """Bilinear resize by a factor; sides are rounded, at least 1 pixel."""
    return resize_to(image, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))


def resize_to(image: UInt8, size: tuple[int, int]) -> UInt8:
    """Bilinear resize to (height, width)."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


class Augmentation(NamedTuple):
    """One draw: resize to (height, width), cut the crop at (top, left), then mirror."""

    height: int
    width: int
    top: int
    left: int
    mirror: bool


def draw(
    size: tuple[int, int],
    *,
    crop: tuple[int, int],
    scale: tuple[float, float],
    scale_step: float | None = None,
    flip: bool,
    seed: int,
    epoch: int,
    sample: int,
) -> Augmentation:
    """Draws an augmentation for an image of `size` (height, width) from (seed, epoch, sample) alone (law 1).

    The scale is uniform over the range `scale`, or over low, low + scale_step, ... up to high.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([seed, epoch << 40 | sample], np.uint64)))
    factor, down, across, mirror = random.random(4)
    if scale_step is None:
        factor = scale[0] + (scale[1] - scale[0]) * factor
    else:
        factor = scale[0] + scale_step * int(factor * (round((scale[1] - scale[0]) / scale_step) + 1))
    height, width = (max(1, round(side * factor)) for side in size)
    top = int(down * (max(height - crop[0], 0) + 1))
    left = int(across * (max(width - crop[1], 0) + 1))
    return Augmentation(height, width, top, left, flip and mirror < 0.5)


def apply(image: UInt8, label: UInt8, augmentation: Augmentation, crop: tuple[int, int], fill: UInt8) -> tuple[UInt8, UInt8]:
    """Image uint8[h, w, 3] and label uint8[h, w] of the crop's size; what lies outside is `fill` and 255."""
    height, width, top, left, mirror = augmentation
    if (height, width) != label.shape:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
    window = slice(top, top + crop[0]), slice(left, left + crop[1])
    image, label = image[window], label[window]
    if label.shape != crop:
        padded, ignored = np.empty((*crop, 3), np.uint8), np.full(crop, IGNORE, np.uint8)
        padded[:] = fill
        padded[: label.shape[0], : label.shape[1]] = image
        ignored[: label.shape[0], : label.shape[1]] = label
        image, label = padded, ignored
    if mirror:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)  # type: ignore[assignment]
    return np.ascontiguousarray(image), np.ascontiguousarray(label)
