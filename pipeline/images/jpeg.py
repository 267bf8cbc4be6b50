"""The structure of a JPEG file (ITU-T T.81, annex B): markers, segments and scans, up to the first end marker.

What follows the end marker (a motion photo, a vendor's trailer, a second picture) is not the picture's and is not read.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.images import tiff
from pipeline.images.header import Header

FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a frame header, which says size and components."""
DECODED = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
"""Frames that OpenCV decodes: sequential and progressive ones, not lossless or hierarchical ones."""
PROGRESSIVE = {0xC2, 0xCA}
SCAN = 0xDA
ALL = bytes([0, 63, 0])
"""First and last coefficient, and missing bits, of a sequential scan."""
SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker that ends a scan: neither a stuffed byte (FF 00) nor a restart (FF D0 to FF D7)."""


class Structure(NamedTuple):
    """What the walk through a JPEG file finds."""

    header: Header
    picture: bytes
    """The file up to its end marker, without APP segments and comments: what the pixels are decoded from."""


class Segment(NamedTuple):
    """A marker and what belongs to it."""

    marker: int
    place: int
    """Of the marker in the file."""
    body: bytes
    """Without marker and length."""
    pixels: bytes
    """The compressed pixels behind a scan header."""


def walk(data: bytes) -> Structure:
    """Walks from marker to marker. Raises ValueError for a file that is cut, or damaged between its markers."""
    header, components, orientation, sequential = None, dict[int, list[int]](), 1, False
    parts = [b"\xff\xd8"]
    for segment in _segments(data):
        body = segment.body
        if segment.marker in FRAMES:
            if header:
                raise ValueError(f"damaged JPEG: a second frame header at byte {segment.place}")
            header, sequential = _frame(segment), segment.marker not in PROGRESSIVE
            components = {number: [-1] * 64 for number in body[6::3]}
        elif segment.marker == SCAN:
            if sequential:  # these bytes mean nothing here, but libjpeg warns of odd ones, and then of nothing else
                body = body[:-3] + ALL
            _note_scan(segment._replace(body=body), components)
        elif segment.marker == 0xE1 and body.startswith(b"Exif\0\0") and orientation == 1:
            orientation = tiff.orientation(body[6:])
        if not 0xE0 <= segment.marker <= 0xEF and segment.marker != 0xFE:
            parts += [bytes([0xFF, segment.marker]), (len(body) + 2).to_bytes(2, "big"), body, segment.pixels]
    # A coefficient below 0 never came; above 0, the scans that refine it are missing.
    if not header or any(bits[0] < 0 or max(bits) > 0 for bits in components.values()):
        raise ValueError("truncated JPEG: scans are missing before its end marker")
    return Structure(header._replace(orientation=orientation), b"".join([*parts, b"\xff\xd9"]))


def _segments(data: bytes) -> Iterator[Segment]:
    """The segments up to the end marker. Raises ValueError if a marker or the end is not where it must be."""
    place = 2
    while True:
        if data[place : place + 1] not in (b"\xff", b""):
            raise ValueError(f"damaged JPEG: no marker at byte {place}, where one must be")
        start = place + 1
        while data[start : start + 1] == b"\xff":  # any number of these may stand before a marker
            start += 1
        marker = data[start] if start < len(data) else -1
        if marker == 0xD9:
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # stand alone, without a length
            place = start + 1
            continue
        length = int.from_bytes(data[start + 1 : start + 3], "big")
        end = start + 1 + length
        if marker in (0x00, 0xD8) or (length < 2 and start + 3 <= len(data)):
            raise ValueError(f"damaged JPEG: marker FF {marker:02X} at byte {place}, in the middle of the picture")
        if start + 3 > len(data) or end > len(data):
            raise _truncated(data)
        found = SCAN_END.search(data, end) if marker == SCAN else None
        if marker == SCAN and not found:
            raise _truncated(data)
        after = found.start() if found else end
        yield Segment(marker, place, data[start + 3 : end], data[end:after])
        place = after


def _frame(segment: Segment) -> Header:
    body = segment.body
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise ValueError(f"damaged JPEG: frame header at byte {segment.place}")
    if segment.marker not in DECODED or body[0] != 8:
        raise ValueError(f"JPEG of type {segment.marker - 0xC0}, {body[0]} bits: convert it to a usual JPEG or to PNG")
    colours = {1: "grey", 3: "RGB", 4: "CMYK"}.get(body[5], f"{body[5]} channels")
    return Header("JPEG", int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"), colours)


def _note_scan(segment: Segment, components: dict[int, list[int]]) -> None:
    """Notes for each component in the scan how many low bits of which coefficients are still missing."""
    body = segment.body
    number = body[0] if body else 0
    if len(body) != 4 + 2 * number or not number or not set(body[1:-3:2]) <= components.keys():
        raise ValueError(f"damaged JPEG: scan header at byte {segment.place}")
    first, last, low_bits = body[-3], body[-2], body[-1] & 15
    for component in body[1:-3:2]:
        for coefficient in range(min(first, 63), min(last, 63) + 1):
            components[component][coefficient] = low_bits


def _truncated(data: bytes) -> ValueError:
    return ValueError(f"truncated JPEG: no end marker in {len(data)} bytes")
