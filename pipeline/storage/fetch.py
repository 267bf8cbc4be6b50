"""Fetches a published file once, into a cache of this user."""

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from pipeline.errors import StorageError
from pipeline.storage import disk


def cache() -> Path:
    """The folder of fetched files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ccnet"


def fetched(url: str, sha256: str) -> bytes:
    """The bytes of a file at an http(s) address, from the cache if it is there. `sha256`: the first digits of its hash.

    Raises StorageError, which says where to put the file, when it cannot be fetched or is another one.
    """
    name = Path(urlsplit(url).path).name
    file = cache() / name
    by_hand = f"put the file {name} into {cache()}, or name another place of it in model.weights"
    if file.exists():
        data = file.read_bytes()
        if not hashlib.sha256(data).hexdigest().startswith(sha256):
            raise StorageError(
                f"{file}: is not the published file (its sha256 does not begin with {sha256}): delete it, or {by_hand}"
            )
        return data
    try:
        with fsspec.open(url) as source:
            data = bytes(source.read())
    except Exception as error:  # of any type, from any client
        raise StorageError(f"{url}: cannot be fetched ({type(error).__name__}: {error}): {by_hand}") from error
    if not hashlib.sha256(data).hexdigest().startswith(sha256):
        raise StorageError(f"{url}: gave another file, not the one whose sha256 begins with {sha256}: {by_hand}")
    with disk.writing(file.parent, len(data)):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            part.write(data)
        os.replace(part.name, file)  # several processes may fetch it at a time
    return data
