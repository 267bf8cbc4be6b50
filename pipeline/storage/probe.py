"""Checks a store before work begins: writes and reads files in the way that checkpoints will be written and read."""

import os
import secrets
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow.fs

from pipeline import CHECKSUMS
from pipeline.errors import StorageError
from pipeline.storage import disk
from pipeline.storage.s3 import PART_BYTES
from pipeline.storage.s3_errors import explain
from pipeline.storage.store import Store

PROBED = (4.0, 2.0)
"""patience_s and read_timeout_s of a check's first request, so that an unreachable endpoint is reported within 15 s."""
PACE_BYTES = 2**20
"""Bytes of the write that shows whether a store is too slow: more than the buffers on the way take at once."""


def check(store: Store, setting: str = "storage.path") -> None:
    """Writes, reads back and deletes two files as Ray Train does, one of them in several parts.

    `setting` is the one that holds the address. Raises StorageError, which names the bucket or folder, what failed and the fix.
    """
    name = f".check-{uuid.uuid4().hex}"
    try:
        if store.is_s3:
            _impatient(store).write(f"{name}/probe", b"probe")
            # Ray's way of writing is tried ten times, for ten minutes if the store is too slow; this one for one minute.
            replace(store, patience_s=min(store.patience_s, store.read_timeout_s)).write(f"{name}/pace", bytes(PACE_BYTES))
        try:
            equal = _round_trip(store, name)
        finally:
            store.delete(name)
    except Exception as error:
        raise explain(store, error, setting=setting) from error
    if not equal:
        raise StorageError(
            f"{store.root}: the data read back differ from the data written: the store loses data without an error; "
            f"set {' and '.join(f'{k}={v}' for k, v in CHECKSUMS.items())} for driver and workers, or use another store"
        )


def check_readable(store: Store, setting: str = "data.source") -> None:
    """Lists a few entries of a bucket's prefix or of a folder that is only read; `setting` is the one that holds its address.

    Raises StorageError, which names the bucket or folder and the fix, also if it is empty.
    """
    keys: list[str] = []
    try:
        if store.is_s3:
            keys = [found.key for found in _impatient(store).page(limit=100)[0]]
            empty = all(key.endswith("/") for key in keys)
        else:
            with os.scandir(store.root) as entries:
                empty = next(entries, None) is None
    except Exception as error:
        raise explain(store, error, setting=setting) from error
    if keys and all(key.startswith("/") for key in keys) and all(key.startswith("/") for key in store.list()):
        raise StorageError(
            f"{store.root}: its keys begin with an empty part, such as {store.url(keys[0])}: end {setting} with //"
        )
    if empty:
        raise StorageError(f"{store.root}{f' at {store.endpoint}' if store.endpoint else ''}: no files found: correct {setting}")


def _impatient(store: Store) -> Store:
    return replace(store, patience_s=PROBED[0], read_timeout_s=PROBED[1])


def _round_trip(store: Store, name: str) -> bool:
    files = {"small": secrets.token_bytes(300_000), "parts": secrets.token_bytes(PART_BYTES + 300_000)}
    fs, path = store.arrow()
    with tempfile.TemporaryDirectory() as folder:
        up, down = Path(folder, "up"), Path(folder, "down")
        up.mkdir()
        down.mkdir()
        for file, data in files.items():
            with disk.writing(Path(folder).parent, len(data)):
                (up / file).write_bytes(data)
        fs.create_dir(f"{path}/{name}")
        pyarrow.fs.copy_files(str(up), f"{path}/{name}", destination_filesystem=fs)
        pyarrow.fs.copy_files(f"{path}/{name}", str(down), source_filesystem=fs)
        return all((down / file).is_file() and (down / file).read_bytes() == data for file, data in files.items())
