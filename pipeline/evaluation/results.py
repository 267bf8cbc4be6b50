"""Writes the results of jobs.predict. Each carries a seal, by which a rerun replaces its own results and no other file."""

import hashlib
import struct
import zlib

from pipeline.storage.store import Store

_KEYWORD = b"tEXtccnet result\0"
_END = 12
"""Bytes of the chunk that ends a PNG."""


def sealed(png: bytes, image: str) -> bytes:
    """The PNG with a text chunk before its end: a hash of the PNG and of the address of the image whose result it is.

    Chunks: PNG specification, section 5.3.
    """
    digest = hashlib.sha256(image.encode(errors="surrogateescape") + b"\0" + png).hexdigest()
    chunk = _KEYWORD + digest.encode()
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:-_END] + chunk + png[-_END:]


def is_own(data: bytes, image: str) -> bool:
    """Whether a file is a result of this image, unchanged since it was written."""
    length = len(sealed(b"\0" * _END, image)) - _END
    return sealed(data[: -_END - length] + data[-_END:], image) == data


def write_results(output: Store, files: dict[str, bytes], image: str) -> None:
    """Writes PNG files under their keys as results of an image. Raises FileExistsError if one would replace another file."""
    for key in files:
        try:
            held = output.read(key)
        except FileNotFoundError:
            continue
        if not is_own(held, image):
            raise FileExistsError(
                f"{output.url(key)} was not replaced: it is no result of this image, or was changed since: move it, or choose "
                "another predict.output"
            )
    for key, png in files.items():
        output.write(key, sealed(png, image))
