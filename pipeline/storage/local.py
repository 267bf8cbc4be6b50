"""A folder used like a bucket: replaces files as a whole and lists every file."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def replace_file(path: str, data: bytes) -> None:
    """Writes a file, and its folders if they are missing, so that readers see the old or the new content and never a part."""
    scratch = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def files_below(path: str, inside: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of the files in a folder and its subfolders. Links are followed: data sets are often linked from several disks.

    If the path is a file, that is the only result; if it does not exist, there is none. A link back to one of the folders that
    contain it is not followed. A link whose target does not exist is listed as a file: what it stood for is missed.
    """
    if os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path)):
        yield path
    elif os.path.isdir(path) and (real := os.path.realpath(path)) not in inside:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # the folder was deleted in the meantime
            names = sorted(os.listdir(path))
        for name in names:
            yield from files_below(os.path.join(path, name), inside | {real})
