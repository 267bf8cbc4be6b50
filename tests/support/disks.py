"""A real disk of one MiB."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mounts a disk of one MiB at the folder; skips the test where nothing can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount, as root has it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
