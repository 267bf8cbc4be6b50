"""A folder used like a bucket: replaces files as a whole and lists every file."""

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path


def replace_file(path: str, data: bytes, *, durable: bool = True) -> None:
    """Writes a file, and its folders if they are missing, so that readers see the old or the new content and never a part.

    If `durable`, it is on the disk when this returns, also if the machine loses power then: a manifest must not outlive what it
    lists. Otherwise only a part of it may be there after a loss of power.
    """
    scratch = Path(path).parent / f".{uuid.uuid4().hex}.tmp"  # not longer than the longest name that the file may have
    made = _make_folders(scratch.parent)
    try:
        with scratch.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    if durable:
        for folder in [scratch.parent, *(each.parent for each in made)]:
            _sync_folder(folder)


def is_scratch(name: str) -> bool:
    """Whether a file is what `replace_file` leaves when its process is killed."""
    return re.fullmatch(r"\.[0-9a-f]{32}\.tmp", name) is not None


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder and those above it that are missing; returns them, the lowest first."""
    missing = [*takewhile(lambda each: not each.exists(), (folder, *folder.parents))]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _sync_folder(folder: Path) -> None:
    """Writes the names in a folder to the disk."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except (PermissionError, FileNotFoundError):  # one that may be written but not listed, or was deleted in the meantime
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call for a folder
            raise
    finally:
        os.close(handle)


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
    contain it is not followed. A link whose target does not exist is listed as a file: what it stood for is missed. Raises
    PermissionError for what this process may not look into: it could hold files.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if isinstance(error, PermissionError):
            raise
        if os.path.islink(path):
            yield path
        return
    if stat.S_ISREG(mode):
        yield path
    elif stat.S_ISDIR(mode) and (real := os.path.realpath(path)) not in inside:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # the folder was deleted in the meantime
            names = sorted(os.listdir(path))
        for name in names:
            yield from files_below(os.path.join(path, name), inside | {real})
