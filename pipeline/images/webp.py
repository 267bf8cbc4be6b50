"""The structure of a WebP file (RFC 9649): a RIFF container of chunks."""

from pipeline.images import tiff
from pipeline.images.header import Header


def read_header(data: bytes) -> Header:
    """The header. Raises ValueError for a damaged or an animated WebP."""
    total = _length(data)
    if total > len(data):
        raise ValueError(f"truncated WebP: {len(data)} bytes of {total}")
    place, size, orientation = 12, None, 1
    while place + 8 <= total:
        kind, start = data[place : place + 4], place + 8
        end = start + int.from_bytes(data[place + 4 : start], "little")
        if end > total:
            raise ValueError(f"damaged WebP: chunk {kind!r} at byte {place} lies behind the end at {total}")
        body = data[start : min(end, start + 32)]
        if kind in (b"ANIM", b"ANMF"):
            raise ValueError("animated WebP: save one frame as a file of its own")
        if kind == b"EXIF":
            orientation = tiff.orientation(data[start:end].removeprefix(b"Exif\0\0"))
        elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
            size = int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
        elif kind == b"VP8L" and body[:1] == b"\x2f":
            packed = int.from_bytes(body[1:5], "little")
            size = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        place = end + end % 2
    if size is None or place < total:
        raise ValueError("damaged WebP: without a picture, or with bytes that belong to no chunk")
    return Header("WebP", *size, "RGB", orientation=orientation)


def picture(data: bytes) -> bytes:
    """The file without what follows its end: OpenCV takes it for a part of the picture if that has too few bytes."""
    return data[: _length(data)]


def _length(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")
