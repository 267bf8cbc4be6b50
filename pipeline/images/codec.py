"""Decodes image files to uint8 arrays, encodes arrays, and checks files for damage."""

import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
IGNORE = 255
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp")
"""Endings of the names of image files, in lower or upper case."""
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
"""Endings of the names of label files, in lower or upper case."""
PNG = b"\x89PNG\r\n\x1a\n"
ONE_CHANNEL = "a label is an 8-bit image of one channel or a palette PNG"
PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}


def decode_image(data: bytes) -> UInt8:
    """uint8[H, W, 3] RGB from an encoded grey, palette or colour image, without alpha. Raises ValueError if it does not decode.

    An EXIF orientation is not applied, because labels have none and belong to the pixels as stored.
    """
    return _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def decode_label(data: bytes) -> UInt8:
    """uint8[H, W] from an image of one channel of at most 8 bits or a palette PNG: the stored values or indices, unchanged.

    Raises ValueError for any other image, or if it does not decode.
    """
    depth = 8
    if data.startswith(PNG):
        data, depth = _grey_png(data)
    label = _decode(data, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"{ONE_CHANNEL}, found {label.dtype} of shape {label.shape}")
    # OpenCV scales values of 1, 2 and 4 bits to 0..255; labels need the stored values.
    return label if depth == 8 else label // np.uint8(255 // (2**depth - 1))


def _grey_png(data: bytes) -> tuple[bytes, int]:
    """The PNG as a grey one, whose pixels are the indices of the palette, and its bit depth (1, 2, 4 or 8).

    OpenCV would turn the palette into colours. Only the header, the pixels and the end are kept (PNG specification, sections 5.3
    and 11.2). Raises ValueError.
    """
    chunks: dict[str, list[bytes]] = {"IDAT": [], "IEND": []}
    for kind, start, end in _png_chunks(data):
        chunks.get(kind, []).append(data[start - 8 : end + 4])
    # The header is changed below and gets a new checksum, so the old one is checked here; libpng checks the other chunks.
    if not all(chunks.values()) or struct.pack(">I", zlib.crc32(data[12:29])) != data[29:33]:
        raise ValueError(f"not a readable image (PNG of {len(data)} bytes with a broken header or without pixels)")
    depth, colour = data[24], data[25]
    if colour not in (0, 3) or depth > 8:
        raise ValueError(
            f"{ONE_CHANNEL}, found {PNG_COLOURS.get(colour, colour)} of {depth} bits a channel; store class ids instead"
        )
    # Only the colour type changes, to 0 (grey); size, depth, compression, filter and interlacing are kept.
    header = data[12:25] + b"\0" + data[26:29]
    header = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"".join([PNG, header, *chunks["IDAT"], *chunks["IEND"]]), depth


def _decode(data: bytes, flags: int) -> UInt8:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if len(data) else None
    if image is None:
        raise ValueError(f"not a readable image ({len(data)} bytes)")
    return as_uint8(image)


def as_uint8(image: cv2.typing.MatLike) -> UInt8:
    """The same array, typed as uint8: OpenCV's stubs do not know that uint8 input gives uint8 output."""
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


def check_encoding(data: bytes) -> None:
    """Raises ValueError for anything but a complete PNG or JPEG: some decoders fill missing parts with grey and raise nothing."""
    if not data:
        raise ValueError("empty file")
    if data.startswith(PNG):
        for kind, start, end in _png_chunks(data):
            if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise ValueError(f"damaged PNG: chunk {kind!r} at byte {start - 8} fails its checksum")
    elif data.startswith(b"\xff\xd8"):
        if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError(f"truncated JPEG: no end marker after {len(data)} bytes")
    else:
        raise ValueError("neither PNG nor JPEG")


def _png_chunks(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(type, start, end) of each chunk's content, up to IEND."""
    place, kind = len(PNG), ""
    while kind != "IEND":
        start = place + 8
        end = start + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : start].decode("latin-1")
        if end + 4 > len(data):
            raise ValueError(f"truncated PNG: ends after {len(data)} bytes, before its IEND")
        yield kind, start, end
        place = end + 4
