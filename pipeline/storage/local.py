"""A folder used like a bucket: replaces files as a whole and lists every file."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def replace_file(path: str, data: bytes) -> None:
    """Writes a file, and its folders if they are missing, so that readers see the old or the new content and never a part."""
    scratch = Path(path).parent / f".{uuid.uuid4().hex}.tmp"  # shorter than the longest name that the file may have
    scratch.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def delete(path: str) -> None:
    """Deletes a file, a link, or a folder with everything in it. What a link leads to stays."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def link_above(root: str, key: str) -> str | None:
    """The first link among the folders between the root and the key; None if there is none."""
    parts = key.split("/")[:-1]
    folders = (os.path.join(root, *parts[: depth + 1]) for depth in range(len(parts)))
    return next(filter(os.path.islink, folders), None)


def files_below(path: str, inside: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of the files in a folder and its subfolders. Links are followed: data sets are often linked from several disks.

    If the path is a file, that is the only result; if it does not exist, there is none. A link back to one of the folders that
    contain it is not followed.
    """
    if os.path.isfile(path):
        yield path
    elif os.path.isdir(path) and (real := os.path.realpath(path)) not in inside:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # the folder was deleted in the meantime
            names = sorted(os.listdir(path))
        for name in names:
            yield from files_below(os.path.join(path, name), inside | {real})
