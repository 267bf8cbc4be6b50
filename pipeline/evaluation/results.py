"""Writes the results of jobs.predict. Each carries a seal, by which a rerun knows its own results and replaces no other file."""

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence

from pipeline.storage.store import Store

_KEYWORD = b"tEXtccnet result\0"
_END = 12
"""Bytes of the chunk that ends a PNG."""


def sealed(png: bytes, image: str, made_of: str = "") -> bytes:
    """The PNG with a text chunk before its end: a hash of the PNG and of the address of the image whose result it is.

    `made_of`: a hash of what the result was computed of, which the chunk then has too. Chunks: PNG specification, section 5.3.
    """
    digest = hashlib.sha256(image.encode(errors="surrogateescape") + b"\0" + png + made_of.encode()).hexdigest()
    chunk = _KEYWORD + digest.encode() + (b" " + made_of.encode() if made_of else b"")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:-_END] + chunk + png[-_END:]


def seal_of(data: bytes, image: str) -> str | None:
    """What a result of this image was made of, empty if it does not say so; None for any other file, or one that was changed."""
    start = data.rfind(_KEYWORD, -_END - 4 - len(_KEYWORD) - 200) - 4
    if start < 0:
        return None
    text, _, made_of = data[start + 4 + len(_KEYWORD) : -_END - 4].partition(b" ")
    found = made_of.decode("ascii", "replace")
    return found if text and sealed(data[:start] + data[-_END:], image, found) == data else None


def held(output: Store, keys: Sequence[str]) -> dict[str, bytes]:
    """The files that are there under these keys."""
    found = {}
    for key in keys:
        try:
            found[key] = output.read(key)
        except FileNotFoundError:
            continue
    return found


def write_results(output: Store, files: Mapping[str, bytes], there: Mapping[str, bytes], image: str, made_of: str) -> None:
    """Writes PNG files under their keys as results of an image. Raises FileExistsError if one would replace another file.

    `there`: what `held` found under these keys.
    """
    for key, data in there.items():
        if seal_of(data, image) is None:
            raise FileExistsError(
                f"{output.url(key)} was not replaced: it is no result of this image, or was changed since: move it, or choose "
                "another predict.output"
            )
    for key, png in files.items():
        output.write(key, sealed(png, image, made_of))
