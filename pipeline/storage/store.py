"""All access to object storage: an S3-compatible bucket or a folder behind one interface.

A request that fails for a transient reason is retried for `patience_s` seconds, and each fault is a line in the log. So a run
waits for a store that restarts, and a store that is gone is an error and not a hang. The layers below do not retry, because they
would not log it (decision 33).
"""

import builtins
import contextlib
import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
import pyarrow.fs

from pipeline import CHECKSUMS
from pipeline.config.base import Bucket, Storage, has_scheme
from pipeline.errors import StorageError
from pipeline.storage.local import delete, files_below, link_above, replace_file
from pipeline.storage.retry import Failed, outcome, retried
from pipeline.storage.s3 import PART_BYTES, RETRIED, S3FileSystem, tried_once
from pipeline.storage.s3_errors import NoListing, ShortBody, codes, describe, explain, is_transient

PIECE_BYTES = 16 * 2**20
"""Largest part of an object that is held in memory during a comparison."""
DANGLING = "link without target"
"""Version of a link in a folder whose target does not exist."""
R = TypeVar("R")
Range = tuple[str, int, int | None]  # key, first byte, end (exclusive; None: the end of the object)
logger = logging.getLogger(__name__)


class Object(NamedTuple):
    """An entry of a listing; `size` in bytes."""

    key: str
    size: int
    version: str
    """S3's ETag without quotes, or a file's modification time in ns, or DANGLING."""


@dataclass(frozen=True)
class Store:
    """A root URL and the operations on the keys below it. Picklable and hashable; each process opens its own connections.

    Every operation raises StorageError, which names bucket and key, for a fault that is final (credentials, bucket, request) or
    that lasts longer than `patience_s`. Faults of a folder are never retried.
    """

    root: str
    """`s3://bucket/prefix` or an absolute folder, without a slash at the end."""
    endpoint: str | None = None
    patience_s: float = field(default=120, compare=False, repr=False)
    """Seconds during which a request that fails for a transient reason is retried."""
    read_timeout_s: float = field(default=20, compare=False, repr=False)
    """Seconds without a byte after which a request counts as failed."""
    bucket: Bucket = field(default=Bucket(), repr=False)
    """How the bucket is accessed."""

    @property
    def is_s3(self) -> bool:
        return self.root.startswith("s3://")

    def join(self, *parts: str) -> "Store":
        """The store below this one."""
        return replace(self, root="/".join([self.root, *parts]))

    def url(self, key: str) -> str:
        """Full address of a key: `s3://bucket/prefix/key` or a path."""
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes:
        """The bytes of a key. Raises FileNotFoundError, whose message is the full address."""
        return self._request(key, lambda fs, path: bytes(fs.cat_file(path)))

    def read_ranges(self, ranges: Sequence[Range]) -> builtins.list[bytes]:
        """Bytes of each range. From S3 they are fetched concurrently, one request each, and only failed ranges are fetched again.

        A range that reaches past the end of the object gives the bytes up to the end, as for a file.

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
        return ShortBody(f"received {len(part)} of {due} bytes") if len(part) < due else bytes(part)

    def write(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Writes the whole value or nothing: readers never see a part of it, nor after a loss of power if `durable`."""
        self._request(key, lambda fs, path: fs.pipe_file(path, data) if self.is_s3 else replace_file(path, data, durable=durable))

    def settle(self) -> None:
        """Returns when what this machine has written to a folder is on the disk. A bucket keeps what it has accepted."""
        if not self.is_s3:
            os.sync()

    def size(self, key: str) -> int:
        """Bytes of a key as the store reports them, 0 for a key that does not exist."""
        return self._held(key) or 0

    def difference(self, key: str, sha256: str, num_bytes: int) -> str | None:
        """What a key holds if it is not these bytes, in words for a message; None if it is. Reads the content back in pieces.

        Needed because some stores answer a write with success and keep nothing.
        """
        size, digest = self.size(key), hashlib.sha256()
        if size != num_bytes:
            return str(size)
        try:
            for start in range(0, size, PIECE_BYTES):
                digest.update(self.read_ranges([(key, start, min(start + PIECE_BYTES, size))])[0])
        except FileNotFoundError:
            return "none that can be read"
        return None if digest.hexdigest() == sha256 else "other bytes: their sha256 differs"

    def exists(self, key: str) -> bool:
        return self._held(key) is not None

    def _held(self, key: str) -> int | None:
        try:
            info = self._request(key, lambda fs, path: fs.info(path))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def list(self, prefix: str = "") -> builtins.list[str]:
        """Keys below the folder `prefix`, sorted, relative to the root; zero-byte `dir/` markers of other tools are omitted."""
        return [found.key for found in self.listing(prefix)]

    def listing(self, prefix: str = "") -> builtins.list[Object]:
        """Objects below the folder `prefix`, sorted by key; keys are relative to the root, `dir/` markers are omitted."""
        if self.is_s3:
            found = [*self._below(prefix)] or ([*self._itself(prefix)] if prefix else [])
            return sorted(each for each in found if not each.key.endswith("/"))
        objects = []
        for path in self._request(prefix, lambda _, path: [*files_below(path)]):
            with contextlib.suppress(FileNotFoundError):  # the file was deleted in the meantime
                info = os.stat(path) if os.path.exists(path) else os.lstat(path)
                version = DANGLING if stat.S_ISLNK(info.st_mode) else str(info.st_mtime_ns)
                objects.append(Object(path[len(self.root) :].lstrip("/"), info.st_size, version))
        return sorted(objects)

    def _below(self, prefix: str) -> Iterator[Object]:
        token: str | None = ""
        while token is not None:
            objects, token = self.page(prefix, token)
            yield from objects

    def _itself(self, key: str) -> Iterator[Object]:
        with contextlib.suppress(FileNotFoundError):
            info = self._request(key, lambda fs, path: fs.info(path))
            if info["type"] == "file":
                yield Object(key, int(info["size"]), info["ETag"].strip('"'))

    def page(self, prefix: str = "", token: str = "", limit: int = 1000) -> tuple[builtins.list[Object], str | None]:
        """Up to `limit` objects of a bucket whose key begins with the text `prefix/`, with `dir/` markers, in the order of S3.

        Also returns the token of the next page, None after the last one.
        """

        def ask(fs: Any, path: str) -> tuple[builtins.list[Object], str | None]:
            bucket, start, _ = fs.split_path(f"{path}/")
            after = {"ContinuationToken": token} if token else {}
            reply = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=start, MaxKeys=limit, **after)
            if not {"Name", "IsTruncated", "KeyCount"} & reply.keys():  # any page of HTML reads as an empty listing
                raise NoListing("the reply is no listing of objects")
            above = f"{prefix}/" if prefix else ""
            objects = [
                Object(above + found["Key"][len(start) :], int(found["Size"]), found.get("ETag", "").strip('"'))
                for found in reply.get("Contents", [])
            ]
            return objects, reply["NextContinuationToken"] if reply.get("IsTruncated") else None

        return self._request(prefix, ask)

    def delete(self, prefix: str) -> None:
        """Deletes the key, or the folder `prefix` with all keys below it. A key that does not exist is no error.

        In a bucket, the keys are listed and deleted one by one: nothing else is hit, and each refusal is an error. In a folder,
        links are deleted and not followed. Raises StorageError if the prefix lies behind a link below the root.
        """
        if not prefix:
            raise ValueError(f"{self.root}: the root itself is never deleted")
        if self.is_s3:
            for key in [prefix, *(found.key for found in self._below(prefix))]:
                self._request(key, lambda fs, path: fs.rm_file(path))
        elif link := link_above(self.root, prefix):
            raise StorageError(f"{self.url(prefix)}: not deleted, because {link} is a link: delete what you do not need by hand")
        else:
            with contextlib.suppress(FileNotFoundError):
                self._request(prefix, lambda _, path: delete(path))

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """(file system, path without scheme) for Ray Train's `storage_filesystem` and `storage_path`; picklable."""
        if not self.is_s3:
            return pyarrow.fs.LocalFileSystem(), self.root
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs(RETRIED))), self._path("")

    def _path(self, key: str) -> str:
        return self.url(key).removeprefix("s3://") if key else self.root.removeprefix("s3://")

    def _refuse_odd(self, key: str) -> None:
        parts = key.split("/") if key else []
        if {".", ".."} & set(parts):
            raise StorageError(f"{self.url(key)}: `{key}` has a part `.` or `..`: write the address without it")
        if "" in parts and not self.is_s3:
            raise StorageError(f"{self.url(key)}: `{key}` has an empty part, which no file of a folder can have: rename it")

    def _fs(self, budget: dict[str, Any] | None = None) -> Any:
        if not self.is_s3:
            return fsspec.filesystem("file", auto_mkdir=True)
        # With the bucket in the host name, a store needs DNS entries that self-hosted stores rarely have.
        addressing = self.bucket.addressing or ("path" if self.endpoint else None)
        style = {"s3": {"addressing_style": addressing}} if addressing else {}
        profile = {"profile": self.bucket.profile} if self.bucket.profile else {}
        # fsspec caches instances by process, thread and arguments, so this does not open a connection each time.
        return S3FileSystem(
            endpoint_url=self.endpoint,
            anon=self.bucket.anonymous,
            requester_pays=self.bucket.requester_pays,
            default_block_size=PART_BYTES,
            use_listings_cache=False,
            config_kwargs={**(budget or tried_once(min(self.read_timeout_s, self.patience_s))), **style},
            **profile,
        )

    def _request(self, key: str, call: Callable[[Any, str], R]) -> R:
        return self._requests([key], lambda _: [outcome(lambda: call(self._fs(), self._path(key)))])[0]

    def _requests(
        self, keys: Sequence[str], attempt: Callable[[builtins.list[int]], Sequence[R | Exception]]
    ) -> builtins.list[R]:
        for key in keys:
            self._refuse_odd(key)
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
            raise explain(self, self._named(failed, key), key) from failed

    def _named(self, failed: Failed, key: str) -> Exception:
        """The failure, or that of a request for the same key whose reply has a body that names the cause; HEAD's has none."""
        if self.is_s3 and failed.final and codes(failed) and all(code.isdecimal() for code in codes(failed)):
            again = outcome(lambda: self._fs().cat_file(self._path(key), start=0, end=1))
            if isinstance(again, Exception) and codes(again):
                return again
        return failed


def open_store(url: str, storage: Storage) -> Store:
    """The store at `s3://bucket/prefix` or in a folder; does not connect yet. Of the text, only one slash at the end is cut.

    Raises StorageError for another scheme, for no bucket, and for a part `.` or `..` in a bucket.
    """
    for name, value in CHECKSUMS.items():
        os.environ.setdefault(name, value)
    if url.startswith("s3://"):
        root = f"s3://{url.removeprefix('s3://').removesuffix('/')}"
        parts, bucket = root.removeprefix("s3://").split("/"), storage.bucket(root)
        if not parts[0]:
            raise StorageError(f"{url}: has no bucket: write s3://BUCKET/PREFIX")
        if {".", ".."} & set(parts):
            raise StorageError(f"{url}: has a part `.` or `..`, which a bucket does not resolve: write the address without it")
        endpoint = bucket.endpoint or storage.endpoint or os.environ.get("AWS_ENDPOINT_URL")
        return Store(root, endpoint, storage.patience_s, bucket=bucket)
    if has_scheme(url):
        raise StorageError(f"{url}: must be s3://BUCKET/PREFIX or a folder")
    return Store(str(Path(os.path.expanduser(url)).absolute()))
