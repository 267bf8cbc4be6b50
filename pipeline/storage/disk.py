"""Faults of a local disk: recognised in any exception, and named with the folder, what was needed and what is free."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DiskError, PipelineError
from pipeline.formatting import size

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows",
    errno.EROFS: "the disk can only be read",
    errno.EIO: "the disk fails (input/output error)",
}
"""Faults of a disk: neither of the data nor of the code, and often passing."""
# safetensors, pyarrow, torch and sqlite raise their own exceptions, which carry the number or the words only as text.
_NUMBER = re.compile(r"(?:\[Errno |\(os error |Os \{ code: )(\d+)")
_WORDS = {
    errno.ENOSPC: re.compile(r"No space left on device|disk is full|StorageFull"),
    errno.EDQUOT: re.compile(r"Disk quota exceeded"),
    errno.EROFS: re.compile(r"Read-only file system|readonly database"),
}


def number(error: BaseException | None) -> int | None:
    """The number in REASONS of the disk's fault that an exception or one of its causes means; None if none means one.

    What lies behind a PipelineError was explained by it and need not be this disk's: s3fs raises "input/output error" for a
    reply that it does not know.
    """
    while error is not None and not isinstance(error, PipelineError):
        if found := next((n for n in (getattr(error, "errno", None), *_numbers(str(error))) if n in REASONS), None):
            return int(found)
        error = error.__cause__
    return None


def sentence(error: BaseException, folder: str | Path | None = None, needed: int | None = None) -> str | None:
    """What a disk's fault is and how to fix it, in one sentence; None if the exception means none.

    `folder`: where it happened; by default that of the file which the exception names, else the temporary folder.
    `needed`: bytes that were to be written.
    """
    if isinstance(error, DiskError):
        return str(error)
    found = number(error)
    if found is None:
        return None
    file = getattr(error, "filename", None)
    where = Path(folder or (Path(os.fsdecode(file)).parent if isinstance(file, str | bytes) else tempfile.gettempdir()))
    temporary = where.is_relative_to(tempfile.gettempdir())
    fix = "free some space there" if found in (errno.ENOSPC, errno.EDQUOT) else "mend it"
    other = "set TMPDIR to a folder with room, on every node" if temporary else "use another folder"
    need = f"{size(needed)} needed, " if needed else ""
    return f"{where}: {REASONS[found]} ({need}{_free(where)}): {fix}, or {other}"


@contextmanager
def writing(folder: Path, needed: int) -> Iterator[None]:
    """Wraps the writing of `needed` bytes into a local folder. Raises DiskError, which names the fault of its disk."""
    try:
        yield
    except Exception as error:
        if text := sentence(error, folder, needed):
            raise DiskError(text) from error
        raise


def _numbers(text: str) -> list[int]:
    return [int(found) for found in _NUMBER.findall(text)] + [n for n, words in _WORDS.items() if words.search(text)]


def _free(folder: Path) -> str:
    """The space that is left, or that it has no room for another file."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if os.statvfs(existing).f_files and not os.statvfs(existing).f_favail:
            return "no room for another file name: its inodes are used up"
        return f"{size(shutil.disk_usage(existing).free)} free"
    except OSError as error:
        return f"free space unknown: {error.strerror}"
