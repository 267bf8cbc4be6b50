"""Image files for what answers them: one picture in each format, and files that are no image or must not be decoded."""

import io
import struct
import zlib
from functools import cache
from typing import Any

import cv2
import numpy as np

from tests.support.delivered import NOISE

HEADER = b"\x89PNG\r\n\x1a\n"


def picture(kind: str = ".png") -> bytes:
    return bytes(cv2.imencode(kind, cv2.cvtColor(NOISE, cv2.COLOR_RGB2BGR))[1])


def turned(pixels: Any = NOISE) -> bytes:
    """A JPEG whose tag turns it by a quarter."""
    from PIL import Image

    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def huge(width: int, height: int) -> bytes:
    """A valid PNG of one bit a pixel, all black: some KB that decode to `width * height` pixels."""
    rows = zlib.compress(bytes((width // 8 + 1) * height))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return HEADER + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@cache
def hostile() -> dict[str, bytes]:
    png, jpeg = picture(), picture(".jpg")
    return {
        "empty": b"",
        "text": b"GET / HTTP/1.1",
        "zeros": bytes(4096),
        "signature": HEADER,
        "cut PNG": png[: len(png) // 2],
        "cut JPEG": jpeg[: len(jpeg) // 2],
        "damaged PNG": png[:200] + b"\xff" * 40 + png[240:],
        "PDF": b"%PDF-1.7\n" + bytes(100),
        "ZIP": b"PK\x03\x04" + bytes(100),
        "no width": HEADER + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 0, 4, 8, 2, 0, 0, 0, 0),
        "huge": huge(20_000, 20_000),
        "huge header": HEADER + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0, 0),
    }


def decoded(png: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
