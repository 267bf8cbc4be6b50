"""A full disk is recognised whatever library meets it, and named with its folder and with what is free."""

import errno
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.errors import DiskError, StorageError
from pipeline.fault_tolerance.failures import Kind, classify
from pipeline.storage import disk
from pipeline.storage.probe import check
from pipeline.storage.store import Store
from tests.support.disks import small_disk
from tests.support.worker_faults import sent

LARGE = torch.zeros(2**20)  # 4 MiB


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    with small_disk(tmp_path / "full") as folder:
        yield folder


def write_file(folder: Path) -> None:
    (folder / "a").write_bytes(bytes(2**21))


def write_tensors(folder: Path) -> None:
    safetensors.torch.save_file({"a": LARGE}, folder / "a")


def write_database(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "a.db")) as database:
        database.execute("CREATE TABLE IF NOT EXISTS a (b)")
        database.execute("INSERT INTO a VALUES (?)", (bytes(2**21),))
        database.commit()


@pytest.mark.parametrize("write", [write_file, write_tensors, write_database])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_full_disk_is_an_infrastructure_fault_with_folder_needed_and_free(write: Callable[[Path], None], full: Path) -> None:
    with pytest.raises(DiskError) as named, disk.writing(full, 2**22):
        write(full)
    fix = "free some space there, or set TMPDIR to a folder with room, on every node"
    assert re.fullmatch(rf"{full}: the disk is full \(4 MiB needed, [\d.]+ (bytes|KiB|MiB) free\): {fix}", str(named.value))
    with pytest.raises(Exception) as raw:  # noqa: PT011
        write(full)
    for error in (named.value, raw.value, sent(raw.value)):
        found = classify(error)
        assert (found.kind, found.raised) == (Kind.INFRASTRUCTURE, True)
        assert "the disk is full (" in found.what


def test_a_folder_used_as_a_store_names_its_full_disk_and_not_its_permissions(full: Path) -> None:
    with pytest.raises(DiskError, match=rf"^{full}/a: the disk is full \(\d.* free\): free some space there"):
        Store(str(full)).write("a/b", bytes(2**21))
    with pytest.raises(DiskError, match=rf"^{full}: the disk is full"):
        check(Store(str(full)))


def test_a_full_temporary_folder_is_not_taken_for_a_fault_of_the_store(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    with pytest.raises(DiskError, match=rf"^{full}: the disk is full .*set TMPDIR to a folder with room"):
        check(Store(str(tmp_path / "store")))


def test_other_faults_of_a_disk_and_errors_that_are_none() -> None:
    text = str(disk.sentence(OSError(errno.EROFS, "Read-only file system", "/srv/runs/a")))
    assert re.fullmatch(r"/srv/runs: the disk can only be read \(.* free\): mend it, or use another folder", text)
    with pytest.raises(OSError, match="No space left") as raised, Path("/dev/full").open("wb", buffering=0) as device:
        device.write(b"a")
    assert disk.number(raised.value) == errno.ENOSPC
    for none in (FileNotFoundError(errno.ENOENT, "No such file", "/a"), PermissionError(errno.EACCES, "no"), ValueError("28")):
        assert disk.sentence(none) is None


def test_an_input_output_error_behind_an_error_of_a_store_is_none_of_a_disk() -> None:
    """s3fs raises it for each reply that it does not know."""
    refused = StorageError("s3://bucket/a: refused")
    refused.__cause__ = OSError(errno.EIO, "SecondLevelDomainForbidden")
    wrapped = RuntimeError("a step failed")
    wrapped.__cause__ = refused
    for error in (refused, wrapped):
        assert disk.sentence(error) is None
        assert "the disk fails" not in classify(error).what
