"""A real disk of a given size."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """Mounts a disk of this size, such as `1m`, at the folder. Raises PermissionError where nothing can be mounted."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, check=False
    ).returncode:
        raise PermissionError("needs the right to mount, as root has it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # idle processes of Ray may hold a file open


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mounts a disk of one MiB at the folder; skips the test where nothing can be mounted."""
    with ExitStack() as ends:
        try:
            ends.enter_context(mounted(folder, "1m"))
        except PermissionError as error:
            pytest.skip(str(error))
        yield folder
