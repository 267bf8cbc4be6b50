"""Says what a file is: the header of an image that is read, or one sentence on what lies there instead."""

import re

from pipeline.images import bmp, jpeg, png, tiff, webp
from pipeline.images.header import Header

READ = "PNG, JPEG, TIFF, BMP and WebP are read"
CONVERT = "convert it to PNG"
"""Also right for labels, whose ids a JPEG would change."""
FOREIGN = tuple(
    (re.compile(start, re.DOTALL | re.IGNORECASE), sentence)
    for start, sentence in (
        (rb"version https://git-lfs", "a Git LFS pointer, not the image: run `git lfs pull` where the repository is cloned"),
        (rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", f"HEIC: {CONVERT}"),
        (rb"....ftypavi[fs]", f"AVIF: {CONVERT}"),
        (rb"....ftypcrx ", f"a raw camera file: {CONVERT}"),
        (rb"....(ftyp|moov|mdat)|RIFF....AVI |\x1a\x45\xdf\xa3", "a video: save its frames as PNG or JPEG"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", f"JPEG 2000: {CONVERT}"),
        (rb"\0\0\0\x0cJXL |\xff\x0a", f"JPEG XL: {CONVERT}"),
        (rb"GIF8[79]a", f"GIF: {CONVERT}"),
        (rb"8BPS", f"a Photoshop file: {CONVERT}"),
        (rb"P[1-7]\s", f"PNM: {CONVERT}"),
        (rb"v/1\x01|#\?RADIANCE", f"an HDR picture: {CONVERT}"),
        (rb".{128}DICM", f"DICOM: {CONVERT}"),
        (rb"\0\x05\x16[\0\x07]", "a companion file of macOS, without an image: delete it"),
        (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|.{257}ustar", "an archive: unpack it"),
        (rb"%PDF", "a PDF: save its pictures as PNG or JPEG"),
        (rb"\x93NUMPY|\x89HDF|MATLAB 5", f"an array, not an image: {CONVERT}"),
        (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", f"SVG: {CONVERT}"),
        (rb"(\xef\xbb\xbf)?\s*(<!DOCTYPE html|<html|<head|<body)", "an HTML page, often a refused download: download it again"),
        (rb"(\xef\xbb\xbf)?\s*<(\?xml|Error)", "an XML document, often a refused download: download it again"),
        (rb"\0+$", "zero bytes, as an interrupted copy leaves them: copy it again"),
        (rb"(\xef\xbb\xbf)?[\t\n\r\x20-\x7e]+$", f"text, not an image: {READ}"),
    )
)
"""(first bytes of a file, what it is and what to do)."""


def read_header(data: bytes) -> Header:
    """The header of an image file. Raises ValueError that says what is wrong with it and what to do.

    All that can be seen without decoding: markers, chunks, lengths, checksums, and the size.
    """
    if not data:
        raise ValueError("empty file: copy it again")
    if data.startswith(png.SIGNATURE):
        header = png.read_header(data)
    elif data.startswith(b"\xff\xd8"):
        header = jpeg.walk(data).header
    elif data.startswith(tiff.SIGNATURES):
        header = tiff.read_header(data)
    elif data.startswith(b"BM"):
        header = bmp.read_header(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        header = webp.read_header(data)
    else:
        head = data[:1024]
        raise ValueError(
            next((text for start, text in FOREIGN if start.match(head)), f"no image that is known: {CONVERT}: {READ}")
        )
    return header.checked()
