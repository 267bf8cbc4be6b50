"""The one door to object storage: an S3-compatible bucket or a folder behind the same few verbs.

Retries have a budget (botocore's standard mode), so that a store which restarts is waited for and one which is gone is an
error, never a hang. `check` proves a store by writing and reading back through the file system that will hold the checkpoints.
"""

import contextlib
import os
import secrets
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import s3fs
from botocore import exceptions as aws  # type: ignore[import-untyped]
from botocore.handlers import add_expect_header  # type: ignore[import-untyped]

from pipeline.settings import Storage

# Without these two, pyarrow and botocore send trailing checksums which older stores answer with 411; pyarrow.fs.copy_files
# then returns normally and stores nothing: checkpoints lost in silence.
CHECKSUMS = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
PART_BYTES = 8 * 2**20
"""Part of a multipart upload, and read-ahead of `Store.arrow`'s files."""
RETRIED = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 5}}
"""Budget of a job: about 10 s for a refused connection, about 3 minutes for a server that accepts and never answers."""
PROBED = {"connect_timeout": 2, "read_timeout": 2, "retries": {"mode": "standard", "total_max_attempts": 2}}
"""Budget of the first request of `check`: an unreachable endpoint is reported within 15 s."""

_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "ExpiredToken", "InvalidToken", "AuthFailure"}


class StorageError(ValueError):
    """A store that cannot be used: names the bucket or folder, what failed and the fix."""


class _S3(s3fs.S3FileSystem):  # type: ignore[misc]
    # s3fs repeats each request besides botocore's own retries: 5 times the budget. 2 leaves it the reads cut off in the body.
    retries = 2

    async def set_session(self, *args: Any, **kwargs: Any) -> Any:
        client = await super().set_session(*args, **kwargs)
        # aiohttp waits without any limit for the answer to `Expect: 100-continue`: a PUT to a silent server hangs for ever.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        return client


@dataclass(frozen=True)
class Store:
    """A root URL and the verbs on the keys below it. Picklable and hashable; connections are made where it is used."""

    root: str
    """`s3://bucket/prefix` or an absolute folder, without a slash at the end."""
    endpoint: str | None = None
    budget: dict[str, Any] = field(default_factory=lambda: RETRIED, compare=False, repr=False)

    @property
    def is_s3(self) -> bool:
        return self.root.startswith("s3://")

    def join(self, *parts: str) -> "Store":
        """The store below this one."""
        return Store("/".join([self.root, *(p.strip("/") for p in parts)]), self.endpoint, self.budget)

    def url(self, key: str) -> str:
        """Full address of a key: `s3://bucket/prefix/key` or a path."""
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        data: bytes = self._fs().cat_file(self._path(key))
        return data

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes [start, end) of each (key, start, end), fetched concurrently from S3, one request each."""
        keys, starts, ends = zip(*ranges, strict=True)
        parts = self._fs().cat_ranges([self._path(k) for k in keys], list(starts), list(ends), on_error="raise")
        return [bytes(part) for part in parts]

    def write(self, key: str, data: bytes) -> None:
        """The whole value or nothing: readers never see a part of it."""
        fs, path = self._fs(), self._path(key)
        if self.is_s3:
            fs.pipe_file(path, data)
            return
        scratch = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            fs.pipe_file(scratch, data)
            os.replace(scratch, path)
        finally:
            Path(scratch).unlink(missing_ok=True)

    def size(self, key: str) -> int:
        """Bytes of a key as the store itself answers, 0 for one it does not hold."""
        return int(self._fs().size(self._path(key))) if self.exists(key) else 0

    def shortfall(self, key: str, data: bytes) -> str | None:
        """Why a key does not hold what was written, for some stores answer with success and keep nothing; else None."""
        held = self.size(key)
        return None if held == len(data) else f"{self.url(key)}: {len(data)} bytes were written but the store holds {held}"

    def exists(self, key: str) -> bool:
        return bool(self._fs().exists(self._path(key)))

    def list(self, prefix: str = "") -> list[str]:
        """Keys below the folder `prefix`, sorted, relative to the root; without the zero-byte `dir/` markers of other tools."""
        found = self._fs().find(self._path(prefix), detail=True)
        names = [n for n, info in found.items() if not (n.endswith("/") or info.get("Key", "").endswith("/"))]
        return sorted(n[len(self._path("")) + 1 :] for n in names)

    def delete(self, prefix: str) -> None:
        """Deletes the key or the folder `prefix` with all below it; nothing there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs().rm(self._path(prefix), recursive=True)

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """(file system, path without scheme) for Ray Train's `storage_filesystem` and `storage_path`; picklable."""
        if not self.is_s3:
            return pyarrow.fs.LocalFileSystem(), self.root
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs())), self._path("")

    def _path(self, key: str) -> str:
        return f"{self.root.removeprefix('s3://')}/{key}".rstrip("/")

    def _fs(self) -> Any:
        if not self.is_s3:
            return fsspec.filesystem("file", auto_mkdir=True)
        # A bucket as part of the host name needs DNS that stores of one's own rarely have.
        style = {"s3": {"addressing_style": "path"}} if self.endpoint else {}
        # fsspec hands out one instance per process, thread and arguments, so this is not a new connection each time.
        return _S3(
            endpoint_url=self.endpoint,
            default_block_size=PART_BYTES,
            use_listings_cache=False,
            config_kwargs={**self.budget, **style},
        )


def open_store(url: str, storage: Storage) -> Store:
    """The store at `s3://bucket/prefix` or a folder; connects to nothing yet. Raises StorageError for another scheme."""
    for name, value in CHECKSUMS.items():
        os.environ.setdefault(name, value)
    if url.startswith("s3://"):
        parts = [part for part in url.removeprefix("s3://").split("/") if part]
        if not parts:
            raise StorageError(f"{url}: has no bucket: write s3://BUCKET/PREFIX")
        return Store("s3://" + "/".join(parts), storage.endpoint or os.environ.get("AWS_ENDPOINT_URL"))
    if "://" in url:
        raise StorageError(f"{url}: must be s3://BUCKET/PREFIX or a folder")
    return Store(str(Path(url).expanduser().absolute()))


def check(store: Store) -> None:
    """Writes, reads back and deletes two files the way Ray Train does, one of them in several parts.

    Raises StorageError that names the bucket or folder, what failed and the fix.
    """
    name = f".check-{uuid.uuid4().hex}"
    try:
        if store.is_s3:
            probe = Store(store.root, store.endpoint, PROBED)
            probe.write(f"{name}/probe", b"probe")
        try:
            equal = _round_trip(store, name)
        finally:
            store.delete(name)
    except Exception as error:
        raise explain(store, error) from error
    if not equal:
        raise StorageError(
            f"{store.root}: what was written did not come back: the store loses data without an error; "
            f"set {' and '.join(f'{k}={v}' for k, v in CHECKSUMS.items())} for driver and workers, or use another store"
        )


def _round_trip(store: Store, name: str) -> bool:
    files = {"small": secrets.token_bytes(300_000), "parts": secrets.token_bytes(PART_BYTES + 300_000)}
    fs, path = store.arrow()
    with tempfile.TemporaryDirectory() as folder:
        up, down = Path(folder, "up"), Path(folder, "down")
        up.mkdir()
        down.mkdir()
        for file, data in files.items():
            (up / file).write_bytes(data)
        fs.create_dir(f"{path}/{name}")
        pyarrow.fs.copy_files(str(up), f"{path}/{name}", destination_filesystem=fs)
        pyarrow.fs.copy_files(f"{path}/{name}", str(down), source_filesystem=fs)
        return all((down / file).is_file() and (down / file).read_bytes() == data for file, data in files.items())


def explain(store: Store, error: Exception) -> StorageError:
    """What a failed request means and the fix: a StorageError that names the bucket or folder."""
    chain = [error, *(e for e in (error.__cause__, error.__context__) if e is not None)]
    if not store.is_s3:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return StorageError(f"{store.root}: cannot be created or written ({reason}): choose another folder for storage.path")
    bucket = store.root.removeprefix("s3://").split("/")[0]
    where = f"{store.root} at {store.endpoint or 'AWS S3'}"
    codes = {e.response.get("Error", {}).get("Code") for e in chain if isinstance(e, aws.ClientError)}
    if any(isinstance(e, aws.NoCredentialsError | aws.PartialCredentialsError | aws.ProfileNotFound) for e in chain):
        return StorageError(f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role")
    if codes & _REFUSED or any(isinstance(e, PermissionError) for e in chain):
        return StorageError(
            f"{where}: access refused ({_one_line(chain[-1])}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            f"that they may list, read, write and delete in bucket `{bucket}`"
        )
    if "NoSuchBucket" in codes:
        return StorageError(f"{where}: bucket `{bucket}` does not exist: create it, or correct storage.path")
    if any(isinstance(e, aws.ConnectionError | aws.HTTPClientError | TimeoutError) for e in chain):
        return StorageError(f"{where}: cannot be reached ({_one_line(error)}): is the store up, and storage.endpoint right?")
    if store.endpoint and "://" not in store.endpoint:
        return StorageError(f"{where}: storage.endpoint = {store.endpoint!r}: must be a URL such as http://127.0.0.1:9000")
    return StorageError(f"{where}: {type(error).__name__}: {_one_line(chain[-1])}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
