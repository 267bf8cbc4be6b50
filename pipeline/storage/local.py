"""A folder in the place of a bucket: files replaced whole, and all of them found."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def replace_file(path: str, data: bytes) -> None:
    """Writes a file, its folders made if need be, so that readers see the old or the new value and never a part."""
    scratch = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def files_below(path: str, inside: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of the files in a folder and its subfolders, linked ones too: data sets are often linked together from several disks.

    The path itself when it is a file, nothing when it is not there; a link back into a folder that it lies in is not followed.
    """
    if os.path.isfile(path):
        yield path
    elif os.path.isdir(path) and (real := os.path.realpath(path)) not in inside:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # deleted since
            names = sorted(os.listdir(path))
        for name in names:
            yield from files_below(os.path.join(path, name), inside | {real})
