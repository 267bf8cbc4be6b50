"""What a file is: read formats by their content, others by a sentence that names them, sizes before anything is decoded."""

import struct
import zlib

import numpy as np
import pytest

from pipeline.images import codec
from pipeline.images.files import read_header
from pipeline.images.header import MAX_PIXELS
from tests.support import pictures


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "empty file: copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0000", "a Git LFS pointer, not the image: run `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC: convert it to PNG"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "AVIF: convert it to PNG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video: save its frames"),
        (b"RIFF\0\1\0\0AVI LIST", "a video: save its frames"),
        (b"\n<!DOCTYPE html><html>403</html>", "an HTML page, often a refused download: download it again"),
        (b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>", "an XML document, often a refused download"),
        (b"<?xml version='1.0'?>\n<!-- made by hand --><svg width='3'/>", "SVG: convert it to PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG: convert it to PNG"),
        (b"PK\x03\x04\x14\0", "an archive: unpack it"),
        (b"\x1f\x8b\x08\0", "an archive: unpack it"),
        (b"%PDF-1.7", "a PDF: save its pictures"),
        (b"\x93NUMPY\1\0", "an array, not an image"),
        (b"GIF89a", "GIF: convert it to PNG"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000: convert it"),
        (b"\xff\x0a\x01", "JPEG XL: convert it"),
        (b"P6\n3 2\n255\n", "PNM: convert it"),
        (b"\0\x05\x16\x07\0\2\0\0", "a companion file of macOS, without an image: delete it"),
        (bytes(4000), "zero bytes, as an interrupted copy leaves them: copy it again"),
        (b'{"message": "Not Found"}', "text, not an image"),
        (bytes(range(99, 160)), "no image that is known: convert it to PNG: PNG, JPEG, TIFF, BMP and WebP are read"),
    ],
)
def test_a_file_that_is_no_image_is_called_what_it_is(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        codec.check_encoding(data)


def png_of(width: int, height: int) -> bytes:
    """A grey PNG whose pixels are all 0: about 1 MB for each gigapixel."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b""), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts)


def with_size(form: str, width: int, height: int) -> bytes:
    """A small file whose header says this size."""
    data = bytearray(pictures.saved(np.zeros((8, 8, 3), np.uint8), form, **({"lossless": True} if form == "webp" else {})))
    if form == "jpeg":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif form == "bmp":
        data[18:26] = struct.pack("<ii", width, height)
        data += bytes(2**20)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png_of(40_000, 30_000), "40000 x 30000"),
        (png_of(2**20 + 1, 3), "1048577 x 3"),
        (with_size("jpeg", 65_000, 65_000), "65000 x 65000"),
        (pictures.tiff(np.zeros((8, 8), np.uint8), 1, t256=[60_000], t257=[60_000]), "60000 x 60000"),
    ],
)
def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(data: bytes, size: str) -> None:
    with pytest.raises(ValueError, match=f"{size} pixels: at most {MAX_PIXELS} pixels .* are read: cut the image and its label"):
        codec.check_encoding(data)
    with pytest.raises(ValueError, match="at most"):
        read_header(data)


@pytest.mark.parametrize(("width", "height"), [(0, 8), (8, 0)])
def test_a_picture_without_pixels_is_damaged(width: int, height: int) -> None:
    for data in (png_of(width, height), with_size("bmp", width, height), with_size("jpeg", width, height)):
        with pytest.raises(ValueError, match=f"damaged [A-Z]+: its header says {width} x {height} pixels"):
            codec.check_encoding(data)
