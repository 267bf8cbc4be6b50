"""The one door to object storage: an S3-compatible bucket or a folder behind the same few verbs.

A request that fails for a passing reason is sent again inside `patience_s` seconds, each fault a line in the log: a store that
restarts is waited for, one that is gone is an error, never a hang. No layer below repeats anything unseen.
`check` proves a store by writing and reading back through the file system that will hold the checkpoints.
"""

import builtins
import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
import pyarrow.fs

from pipeline.config.base import Storage
from pipeline.errors import StorageError
from pipeline.storage.local import files_below, replace_file
from pipeline.storage.retry import Failed, outcome, retried
from pipeline.storage.s3 import _S3, CHECKSUMS, PART_BYTES, RETRIED, _OneTry
from pipeline.storage.s3_errors import ShortBody, codes, describe, explain, is_transient

PIECE_BYTES = 16 * 2**20
"""Largest part of an object that is in memory while it is compared."""
R = TypeVar("R")
Range = tuple[str, int, int | None]  # key, first byte, byte behind the last; None: to the object's end
logger = logging.getLogger(__name__)


class Object(NamedTuple):
    key: str
    size: int
    version: str
    """S3's ETag without quotes, or a file's modification time in ns."""


@dataclass(frozen=True)
class Store:
    """A root URL and the verbs on the keys below it. Picklable and hashable; connections are made where it is used.

    Every verb raises StorageError, which names bucket and key, for a fault that is final (credentials, bucket, request) or
    that has outlasted `patience_s`. A folder's faults are never tried again.
    """

    root: str
    """`s3://bucket/prefix` or an absolute folder, without a slash at the end."""
    endpoint: str | None = None
    patience_s: float = field(default=120, compare=False, repr=False)
    """Seconds for which a request that fails for a passing reason is tried again."""
    read_timeout_s: float = field(default=20, compare=False, repr=False)
    """Seconds without a byte after which a request counts as failed."""

    @property
    def is_s3(self) -> bool:
        return self.root.startswith("s3://")

    def join(self, *parts: str) -> "Store":
        """The store below this one."""
        return Store("/".join([self.root, *(p.strip("/") for p in parts)]), self.endpoint, self.patience_s, self.read_timeout_s)

    def url(self, key: str) -> str:
        """Full address of a key: `s3://bucket/prefix/key` or a path."""
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError, whose message is the full address."""
        return self._request(key, lambda fs, path: bytes(fs.cat_file(path)))

    def read_ranges(self, ranges: Sequence[Range]) -> builtins.list[bytes]:
        """Bytes of each range, fetched concurrently from S3, one request each; only those that failed are fetched again. As a
        file does, an object that ends before `end` gives what it holds.

        Raises FileNotFoundError, whose message is the full address.
        """
        return self._requests([key for key, _, _ in ranges], lambda jobs: self._fetch([ranges[job] for job in jobs]))

    def _fetch(self, ranges: Sequence[Range]) -> builtins.list[bytes | Exception]:
        keys, starts, ends = zip(*ranges, strict=True)
        parts = self._fs().cat_ranges([self._path(key) for key in keys], list(starts), list(ends), on_error="return")
        return [self._whole(*wanted, part) for wanted, part in zip(ranges, parts, strict=True)]

    def _whole(self, key: str, start: int, end: int | None, part: bytes | Exception) -> bytes | Exception:
        if isinstance(part, Exception):
            return b"" if "InvalidRange" in codes(part) else part
        if not self.is_s3 or end is None or len(part) >= end - start:
            return bytes(part)
        held = outcome(lambda: int(self._fs().info(self._path(key))["size"]))
        if isinstance(held, Exception):
            return held
        due = min(held, end) - start
        return ShortBody(f"{len(part)} bytes came of {due}") if len(part) < due else bytes(part)

    def write(self, key: str, data: bytes) -> None:
        """The whole value or nothing: readers never see a part of it."""
        self._request(key, lambda fs, path: fs.pipe_file(path, data) if self.is_s3 else replace_file(path, data))

    def size(self, key: str) -> int:
        """Bytes of a key as the store itself answers, 0 for one it does not hold."""
        return self._held(key) or 0

    def difference(self, key: str, sha256: str, num_bytes: int) -> str | None:
        """What a key holds, read back in pieces, when it is not these bytes; None when it is.

        Some stores answer a write with success and keep nothing.
        """
        size, digest = self.size(key), hashlib.sha256()
        if size != num_bytes:
            return str(size)
        try:
            for start in range(0, size, PIECE_BYTES):
                digest.update(self.read_ranges([(key, start, min(start + PIECE_BYTES, size))])[0])
        except FileNotFoundError:
            return "none that can be read"
        return None if digest.hexdigest() == sha256 else "others: their sha256 differs"

    def exists(self, key: str) -> bool:
        return self._held(key) is not None

    def _held(self, key: str) -> int | None:
        try:
            return self._request(key, lambda fs, path: int(fs.info(path)["size"]) if self.is_s3 or fs.exists(path) else None)
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "") -> builtins.list[str]:
        """Keys below the folder `prefix`, sorted, relative to the root; without the zero-byte `dir/` markers of other tools."""
        return [found.key for found in self.listing(prefix)]

    def listing(self, prefix: str = "") -> builtins.list[Object]:
        """What lies below the folder `prefix`, sorted by key; keys are relative to the root, `dir/` markers left out."""
        start = len(self._path("")) + 1
        if not self.is_s3:
            objects = []
            for path in self._request(prefix, lambda _, path: [*files_below(path)]):
                with contextlib.suppress(FileNotFoundError):  # a file that was deleted since
                    info = os.stat(path)
                    objects.append(Object(path[start:], info.st_size, str(info.st_mtime_ns)))
            return sorted(objects)
        found: dict[str, dict[str, Any]] = self._request(prefix, lambda fs, path: fs.find(path, detail=True))
        return sorted(
            Object(name[start:], int(info["size"]), info.get("ETag", "").strip('"'))
            for name, info in found.items()
            if not (name.endswith("/") or info.get("Key", "").endswith("/"))
        )

    def delete(self, prefix: str) -> None:
        """Deletes the key or the folder `prefix` with all below it; nothing there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._request(prefix, lambda fs, path: fs.rm(path, recursive=True))

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """(file system, path without scheme) for Ray Train's `storage_filesystem` and `storage_path`; picklable."""
        if not self.is_s3:
            return pyarrow.fs.LocalFileSystem(), self.root
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs(RETRIED))), self._path("")

    def _path(self, key: str) -> str:
        return f"{self.root.removeprefix('s3://')}/{key}".rstrip("/")

    def _fs(self, budget: dict[str, Any] | None = None) -> Any:
        if not self.is_s3:
            return fsspec.filesystem("file", auto_mkdir=True)
        wait = min(self.read_timeout_s, self.patience_s)
        once = {"read_timeout": wait, "connect_timeout": min(5, wait), "http_session_cls": _OneTry,
                "retries": {"mode": "standard", "total_max_attempts": 1}}  # fmt: skip
        # A bucket as part of the host name needs DNS that stores of one's own rarely have.
        style = {"s3": {"addressing_style": "path"}} if self.endpoint else {}
        # fsspec hands out one instance per process, thread and arguments, so this is not a new connection each time.
        return _S3(
            endpoint_url=self.endpoint,
            default_block_size=PART_BYTES,
            use_listings_cache=False,
            config_kwargs={**(budget or once), **style},
        )

    def _request(self, key: str, call: Callable[[Any, str], R]) -> R:
        return self._requests([key], lambda _: [outcome(lambda: call(self._fs(), self._path(key)))])[0]

    def _requests(
        self, keys: Sequence[str], attempt: Callable[[builtins.list[int]], Sequence[R | Exception]]
    ) -> builtins.list[R]:
        try:
            return retried(
                len(keys), attempt, patience_s=self.patience_s,
                is_transient=lambda fault: self.is_s3 and is_transient(fault),
                on_fault=lambda job, fault, next_try, pause_s: logger.warning(
                    "%s: %s, try %d in %.1f s", self.url(keys[job]), describe(fault), next_try, pause_s
                ),
            )  # fmt: skip
        except Failed as failed:
            key, fault = keys[failed.job], failed.__cause__
            if isinstance(fault, FileNotFoundError) and "NoSuchBucket" not in codes(fault):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url(key)) from fault
            raise explain(self, failed, key) from failed


def open_store(url: str, storage: Storage) -> Store:
    """The store at `s3://bucket/prefix` or a folder; connects to nothing yet. Raises StorageError for another scheme."""
    for name, value in CHECKSUMS.items():
        os.environ.setdefault(name, value)
    if url.startswith("s3://"):
        parts = [part for part in url.removeprefix("s3://").split("/") if part]
        if not parts:
            raise StorageError(f"{url}: has no bucket: write s3://BUCKET/PREFIX")
        return Store("s3://" + "/".join(parts), storage.endpoint or os.environ.get("AWS_ENDPOINT_URL"), storage.patience_s)
    if "://" in url:
        raise StorageError(f"{url}: must be s3://BUCKET/PREFIX or a folder")
    return Store(str(Path(url).expanduser().absolute()))
