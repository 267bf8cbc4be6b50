"""The index of a split: where each sample is stored. Pages are read on demand; memory is bounded for any number of samples.

A page is an Arrow IPC file of PAGE_ROWS entries. Its name follows from its number, so the store is never listed and memory does
not grow with the data set. Next to these pages are the members of each class, for a sampler that oversamples classes. Each page
ends with the sha256 of the bytes before it.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cachetools import LRUCache

from pipeline.errors import ShardError
from pipeline.storage.store import Store

Int64 = npt.NDArray[np.int64]

PAGE_ROWS = 256
MEMBERS_ROWS = 4096
CACHED_PAGES = 256
"""Pages that a process caches: about 12 MiB."""
DIGEST = pa.binary(32)
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("image", pa.string()), ("image_start", pa.int64()), ("image_bytes", pa.int64()), ("image_sha256", DIGEST),
        ("label", pa.string()), ("label_start", pa.int64()), ("label_bytes", pa.int64()), ("label_sha256", DIGEST),
        ("height", pa.int32()), ("width", pa.int32()),
    ]
)  # fmt: skip


class Entry(NamedTuple):
    """One sample: object key, first byte, number of bytes and sha256 of its encoded image and label, and its size in pixels."""

    sample_id: str
    image: str
    image_start: int
    image_bytes: int
    image_sha256: bytes
    label: str
    label_start: int
    label_bytes: int
    label_sha256: bytes
    height: int
    width: int


def digest(data: bytes) -> bytes:
    """The sha256 of `data`, 32 bytes."""
    return hashlib.sha256(data).digest()


def content(entries: Sequence[Entry]) -> str:
    """sha256 over the ids, sizes and digests of the samples, in order; it does not depend on where they are stored."""
    total = hashlib.sha256()
    for e in entries:
        total.update(f"{e.sample_id}\0{e.height}\0{e.width}\0".encode() + e.image_sha256 + e.label_sha256)
    return total.hexdigest()


def write_index(store: Store, folder: str, entries: Sequence[Entry], members: Sequence[Int64]) -> None:
    """Writes the pages of entries and, for each class, the positions of the images that contain it."""
    for number, start in enumerate(range(0, len(entries), PAGE_ROWS)):
        columns = zip(*entries[start : start + PAGE_ROWS], strict=True)
        batch = pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA) as file:
            file.write_batch(batch)
        store.write(page_key(folder, number), _sealed(sink.getvalue().to_pybytes()))
    for label, positions in enumerate(members):
        for number, start in enumerate(range(0, len(positions), MEMBERS_ROWS)):
            page = positions[start : start + MEMBERS_ROWS]
            store.write(members_key(folder, label, number), _sealed(page.astype("<i8").tobytes()))


class Index(NamedTuple):
    """The index of one split. It is picklable; pages are cached per process."""

    store: Store
    folder: str
    num_images: int

    def entries(self, positions: Sequence[int]) -> list[Entry]:
        """Entries at `positions`, in that order; uncached pages are fetched together. Raises IndexError, ShardError."""
        for position in positions:
            if not 0 <= position < self.num_images:
                raise IndexError(f"sample {position}: the split has {self.num_images}")
        pages = self._fetched([page_key(self.folder, number) for number in _pages_of(positions, PAGE_ROWS)], _read_page)
        rows = [(pages[page_key(self.folder, p // PAGE_ROWS)], p % PAGE_ROWS) for p in positions]
        return [Entry(*(column[row].as_py() for column in page.columns)) for page, row in rows]

    def members(self, label: int, places: Int64) -> Int64:
        """Positions int64[n] of the images at `places` int64[n] in the list of those that contain class `label`."""
        pages = self._fetched(
            [members_key(self.folder, label, number) for number in _pages_of(places.tolist(), MEMBERS_ROWS)],
            lambda data: np.frombuffer(data, "<i8"),
        )
        found = [pages[members_key(self.folder, label, p // MEMBERS_ROWS)][p % MEMBERS_ROWS] for p in places.tolist()]
        return np.array(found, np.int64)

    def _fetched(self, keys: Sequence[str], decode: Callable[[bytes], Any]) -> dict[str, Any]:
        with _LOCK:
            pages = {key: _PAGES.get((self.store, key)) for key in keys}
        missing = [key for key, page in pages.items() if page is None]
        try:
            parts = self.store.read_ranges([(key, 0, None) for key in missing]) if missing else []
        except FileNotFoundError as error:
            raise ShardError(f"{error.filename}: index page missing: run python -m jobs.prepare CONFIG again") from error
        fetched = {key: decode(self._opened(key, part)) for key, part in zip(missing, parts, strict=True)}
        with _LOCK:  # not held during the fetch: one slow page would block every thread
            _PAGES.update({(self.store, key): page for key, page in fetched.items()})
        return pages | fetched

    def _opened(self, key: str, sealed: bytes) -> bytes:
        if digest(sealed[: -DIGEST.byte_width]) != sealed[-DIGEST.byte_width :]:
            raise ShardError(f"{self.store.url(key)}: index page damaged: delete it and run python -m jobs.prepare CONFIG again")
        return sealed[: -DIGEST.byte_width]


_PAGES: LRUCache[tuple[Store, str], Any] = LRUCache(CACHED_PAGES)
_LOCK = threading.Lock()


def _sealed(data: bytes) -> bytes:
    return data + digest(data)


def _pages_of(positions: Sequence[int], rows: int) -> list[int]:
    return sorted({position // rows for position in positions})


def _read_page(data: bytes) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.BufferReader(data)).get_batch(0)


def page_key(folder: str, number: int) -> str:
    """Key of an index page."""
    return f"{folder}/{number:08d}.arrow"


def members_key(folder: str, label: int, number: int) -> str:
    """Key of a page of a class's members."""
    return f"{folder}/class-{label:03d}/{number:08d}.i64"
