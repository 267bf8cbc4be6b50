"""Decode, encode and resize images, whole or only the part that a crop needs: with augment.py the one place that knows OpenCV."""

import math
import struct
import zlib
from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]

IGNORE = 255
# OpenCV's own threads slow each other down across worker processes and hang after a fork.
cv2.setNumThreads(0)

PNG = b"\x89PNG\r\n\x1a\n"
ONE_CHANNEL = "a label is an 8-bit image of one channel or a palette PNG"
PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}


def decode_image(data: bytes) -> UInt8:
    """uint8[H, W, 3] RGB from an encoded image: grey, palette or colour, alpha dropped. Raises ValueError if it does not decode.

    Pixels stay where they are stored: an EXIF orientation is not applied, as labels, which carry none, lie on the stored pixels.
    """
    return _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def decode_label(data: bytes) -> UInt8:
    """uint8[H, W] from an image of one channel of 8 bits or fewer, or a palette PNG: stored values or indices, untouched.

    Raises ValueError otherwise, or when it does not decode.
    """
    depth = 8
    if data.startswith(PNG):
        data, depth = _grey_png(data)
    label = _decode(data, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"{ONE_CHANNEL}, found {label.dtype} of shape {label.shape}")
    # OpenCV stretches 1, 2 and 4 bits to 0..255.
    return label if depth == 8 else label // np.uint8(255 // (2**depth - 1))


def _grey_png(data: bytes) -> tuple[bytes, int]:
    """The PNG with its palette taken away, so that its indices are its pixels, and its bit depth (1, 2, 4 or 8).

    Only the header, the pixels and the end are kept (PNG specification, sections 5.3 and 11.2). Raises ValueError.
    """
    chunks: dict[bytes, list[bytes]] = {b"IDAT": [], b"IEND": []}
    start = len(PNG)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        chunks.get(kind, []).append(data[start : start + 12 + length])
        start += 12 + length
    # The checksum of the header is made anew below, and so has to be looked at here; libpng looks at the others.
    if not all(chunks.values()) or struct.pack(">I", zlib.crc32(data[12:29])) != data[29:33]:
        raise ValueError(f"not a readable image (PNG of {len(data)} bytes, cut off or with a broken header)")
    depth, colour = data[24], data[25]
    if colour not in (0, 3) or depth > 8:
        raise ValueError(
            f"{ONE_CHANNEL}, found {PNG_COLOURS.get(colour, colour)} of {depth} bits a channel; store class ids instead"
        )
    # Kind, width, height and depth stay; then colour type 0, compression, filter and interlacing.
    header = data[12:25] + b"\0" + data[26:29]
    header = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"".join([PNG, header, *chunks[b"IDAT"], *chunks[b"IEND"]]), depth


def _decode(data: bytes, flags: int) -> UInt8:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if len(data) else None
    if image is None:
        raise ValueError(f"not a readable image ({len(data)} bytes)")
    return as_uint8(image)


def as_uint8(image: cv2.typing.MatLike) -> UInt8:
    """The same array; OpenCV's stubs do not know that 8 bits stay 8 bits."""
    return image  # type: ignore[return-value]


def encode_png(image: UInt8) -> bytes:
    """PNG bytes of uint8[H, W, 3] RGB or uint8[H, W]."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} as PNG")
    return data.tobytes()


def encode_jpeg(image: UInt8, quality: int = 95) -> bytes:
    """JPEG bytes of uint8[H, W, 3] RGB."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} as JPEG")
    return data.tobytes()


def resize_image(image: UInt8, scale: float) -> UInt8:
    """Bilinear resize by a factor; sides are rounded, at least 1 pixel."""
    return resize_to(image, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))


def resize_to(image: UInt8, size: tuple[int, int]) -> UInt8:
    """Bilinear resize to (height, width)."""
    if image.shape[:2] == size:
        return image
    return as_uint8(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR))


def resize_label_to(label: UInt8, size: tuple[int, int]) -> UInt8:
    """Nearest-neighbour resize of uint8[H, W] to (height, width)."""
    return as_uint8(cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST))


def cut_image(image: UInt8, size: tuple[int, int], factor: Fraction | None, extent: tuple[int, int, int, int]) -> UInt8:
    """uint8[h, w, 3]: resized by `factor`, or without one to `size`, and cut at `extent` = (top, left, h, w); never a view.

    Pixel for pixel `cv2.resize(image, None, fx=factor, fy=factor, interpolation=INTER_LINEAR_EXACT)` and then the cut, but only
    the source pixels behind the cut are resized. `size` must be what that call gives: each side times the factor, rounded.
    INTER_LINEAR would differ by 1 in about 0.1% of the values.
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
            window, above, before = image, 0, 0  # where the size stays (a few pixels) OpenCV copies instead of resizing
        resized = cv2.resize(window, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR_EXACT)
        top, left = top - above, left - before
    return as_uint8(resized)[top : top + height, left : left + width]


def cut_label(label: UInt8, size: tuple[int, int], factor: Fraction | None, extent: tuple[int, int, int, int]) -> UInt8:
    """uint8[h, w]: the same for a label with INTER_NEAREST, value for value."""
    top, left, height, width = extent
    if size == label.shape:
        return np.ascontiguousarray(label[top : top + height, left : left + width])
    # Not cv2.resize on a window: 10 * (1 / 1.3) lies on another side of an integer than the same pixel counted from 0.
    rows, columns = (
        _nearest(side, length / side if factor is None else float(factor), start, count)
        for side, length, start, count in zip(label.shape, size, extent[:2], extent[2:], strict=True)
    )
    cut: UInt8 = label[rows[0] : rows[-1] + 1].take(columns, axis=1).take(rows - rows[0], axis=0)
    return cut


def _nearest(side: int, factor: float, start: int, count: int) -> npt.NDArray[np.intp]:
    """Source index of `count` resized pixels from `start` on: OpenCV's floor(x * (1 / factor)), in doubles as there."""
    return (np.arange(start, start + count) * (1 / factor)).astype(np.intp).clip(max=side - 1)


def _window(factor: Fraction, side: int, start: int, count: int) -> tuple[slice, int]:
    """Source pixels that `count` resized ones from `start` on need, and where the first of them lies after the resize.

    It begins where a source and a resized pixel begin together, every (denominator, numerator) pixels: from there on the
    interpolation weights repeat. Two pixels of margin keep the window's edges out of the cut.
    """
    first = max(0, start * factor.denominator // factor.numerator - 2) // factor.denominator * factor.denominator
    skipped = first // factor.denominator * factor.numerator
    needed = start + count - skipped
    stop = min(side, first + math.ceil(needed / factor) + 2)
    if round((stop - first) * float(factor)) < needed:
        return slice(0, side), 0  # half a pixel at the image's end, which rounding gives to the whole but not to the window
    return slice(first, stop), skipped
