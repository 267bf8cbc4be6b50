"""A real disk of a given size."""

import subprocess
import threading
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


@contextmanager
def kept_full(folder: Path) -> Iterator[None]:
    """Fills the folder's disk, and fills again what becomes free; at the end the space is free again."""
    filler, done = folder / "filler", threading.Event()

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while not done.wait(0.05):
                try:
                    while file.write(bytes(2**20)) == 2**20:
                        pass
                except OSError:  # full
                    continue

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        filler.unlink()
