"""Parquet shards of encoded bytes, and the manifest that counts and checksums them.

A shard's row group holds one sample, so that a sample is fetched alone by one ranged read; page checksums are verified on
each read. The manifest is written last: shards without one are not a data set.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.layouts import IGNORE, Color
from pipeline.storage import Store

VERSION = 1
MANIFEST = "manifest.json"
FOOTER_BYTES = 2**16
"""Read from a shard's end at first; holds the footer of about 100 rows."""
SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("image", pa.binary()), ("label", pa.binary()), ("height", pa.int32()), ("width", pa.int32())]
)


class ShardError(ValueError):
    """A manifest or shard that is missing, of another version or damaged: names the file and the fix."""


class Row(NamedTuple):
    """One sample: the encoded bytes of the source files, untouched, and the size in pixels."""

    sample_id: str
    image: bytes
    label: bytes
    height: int
    width: int


@dataclass(frozen=True)
class Shard:
    """One Parquet file; `key` is relative to the data set's store, `sha256` is that of the file."""

    key: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of a split in order, and what is in them."""

    num_images: int
    shards: tuple[Shard, ...]
    pixels: tuple[int, ...]
    """Pixels of each class."""
    ignored: int
    """Pixels of no class."""
    sizes: tuple[tuple[int, int, int], ...]
    """(height, width, number of images), sorted."""


@dataclass(frozen=True)
class Manifest:
    """A packed data set."""

    name: str
    layout: str
    class_names: tuple[str, ...]
    colors: tuple[Color, ...]
    label_map: dict[int, int]
    """Stored label id -> class or 255."""
    splits: dict[str, Split]
    source: str
    """sha256 of the source's listing and of the settings it was packed with."""
    version: int = VERSION
    fingerprint: str = ""
    """sha256 of all the rest but the shards' places: the version of the data."""

    def num_images(self, split: str) -> int:
        return self.splits[split].num_images

    def label_lookup(self) -> npt.NDArray[np.uint8]:
        """uint8[256]: stored label id -> class; ids outside the map, which preparation refuses, are 255."""
        table = np.full(256, IGNORE, np.uint8)
        table[list(self.label_map)] = list(self.label_map.values())
        return table

    def sealed(self) -> "Manifest":
        """This manifest with its fingerprint."""
        content = asdict(replace(self, fingerprint=""))
        for split in content["splits"].values():
            for shard in split["shards"]:
                del shard["key"]  # the same data packed again lies elsewhere
        return replace(self, fingerprint=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())


def write_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Seals and writes; call it when every shard is written. Returns the sealed manifest."""
    sealed = manifest.sealed()
    store.write(MANIFEST, json.dumps(asdict(sealed), indent=1).encode())
    return sealed


def read_manifest(store: Store) -> Manifest:
    """Raises ShardError when there is none, or one of another version or damaged."""
    where = store.url(MANIFEST)
    again = "run python -m jobs.prepare CONFIG"
    try:
        tree = json.loads(store.read(MANIFEST))
    except FileNotFoundError as error:
        raise ShardError(f"{where}: no such data set: {again} first") from error
    except ValueError as error:
        raise ShardError(f"{where}: not valid JSON ({error}): {again} again") from error
    if not isinstance(tree, dict) or tree.get("version") != VERSION:
        found = tree.get("version") if isinstance(tree, dict) else None
        raise ShardError(f"{where}: version {found!r}, this code reads {VERSION}: {again} again")
    try:
        manifest = _from_json(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{where}: damaged ({error!r}): {again} again") from error
    if manifest.sealed() != manifest:
        raise ShardError(f"{where}: its fingerprint does not match its content: {again} again")
    return manifest


def _from_json(tree: dict[str, Any]) -> Manifest:
    splits = {
        name: Split(
            num_images=split["num_images"],
            shards=tuple(Shard(**shard) for shard in split["shards"]),
            pixels=tuple(split["pixels"]),
            ignored=split["ignored"],
            sizes=tuple((h, w, n) for h, w, n in split["sizes"]),
        )
        for name, split in tree["splits"].items()
    }
    values = {
        "splits": splits,
        "class_names": tuple(tree["class_names"]),
        "colors": tuple((r, g, b) for r, g, b in tree["colors"]),
        "label_map": {int(i): c for i, c in tree["label_map"].items()},
    }
    return Manifest(**{**tree, **values})


def write_shard(store: Store, key: str, rows: Sequence[Row]) -> Shard:
    """Writes rows as one Parquet file, one row per row group, the bytes neither compressed nor changed."""
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema=SCHEMA), sink, row_group_size=1, compression="none", use_dictionary=False,
        write_statistics=False, write_page_checksum=True,
    )  # fmt: skip
    data = sink.getvalue().to_pybytes()
    store.write(key, data)
    return Shard(key, len(rows), len(data), hashlib.sha256(data).hexdigest())


class ShardReader:
    """Samples of one split by index, in manifest order. Picklable; footers are cached per process."""

    def __init__(self, store: Store, manifest: Manifest, split: str) -> None:
        self.store = store
        self.shards = manifest.splits[split].shards
        self.ends: list[int] = np.cumsum([shard.rows for shard in self.shards]).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def read(self, indices: Sequence[int]) -> list[Row]:
        """Rows at `indices`, in that order: one ranged read each, concurrent on S3. Raises IndexError, ShardError."""
        if not len(indices):
            return []
        places = [self._place(index) for index in indices]
        spans = [_row_groups(self.store, shard)[row] for shard, row in places]
        try:
            parts = self.store.read_ranges([(shard.key, *span) for (shard, _), span in zip(places, spans, strict=True)])
        except FileNotFoundError as error:  # gone after its footer was cached
            gone = next(shard for shard, _ in places if not self.store.exists(shard.key))
            raise _damaged(self.store, gone, error) from error
        return [_decode(self.store, *place, start, part) for place, (start, _), part in zip(places, spans, parts, strict=True)]

    def _place(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index}: the split has {len(self)}")
        number = bisect_right(self.ends, index)
        shard = self.shards[number]
        return shard, index - (self.ends[number] - shard.rows)


@lru_cache(maxsize=4096)
def _footer(store: Store, shard: Shard) -> pq.FileMetaData:
    try:
        tail = store.read_ranges([(shard.key, max(0, shard.bytes - FOOTER_BYTES), shard.bytes)])[0]
        # A Parquet file ends with the footer, its length (4 bytes, little endian) and `PAR1`.
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            tail = store.read_ranges([(shard.key, max(0, shard.bytes - length), shard.bytes)])[0]
        footer = pq.read_metadata(pa.BufferReader(tail))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise _damaged(store, shard, error) from error
    if footer.num_row_groups != shard.rows:
        raise _damaged(store, shard, f"{footer.num_row_groups} rows, the manifest lists {shard.rows}")
    return footer


@lru_cache(maxsize=4096)
def _row_groups(store: Store, shard: Shard) -> list[tuple[int, int]]:
    """Bytes [start, end) of each row group."""
    footer = _footer(store, shard)
    spans = []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        chunks = [group.column(c) for c in range(group.num_columns)]
        spans.append((chunks[0].data_page_offset, max(c.data_page_offset + c.total_compressed_size for c in chunks)))
    return spans


class _Part:
    """A file of which only bytes [start, start + len(data)) are there: what pyarrow needs to decode one row group."""

    closed = False

    def __init__(self, start: int, data: bytes, size: int) -> None:
        self.start, self.data, self.size, self.place = start, memoryview(data), size, 0

    def seek(self, place: int, whence: int = 0) -> int:
        self.place = place + (0, self.place, self.size)[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, count: int = -1) -> bytes:
        begin = self.place - self.start
        piece = self.data[begin : begin + count if count >= 0 else None].tobytes()
        self.place += len(piece)
        return piece

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _decode(store: Store, shard: Shard, row: int, start: int, data: bytes) -> Row:
    try:
        source = pa.PythonFile(_Part(start, data, shard.bytes), mode="r")
        file = pq.ParquetFile(source, metadata=_footer(store, shard), pre_buffer=False, page_checksum_verification=True)
        table = file.read_row_group(row, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(store, shard, f"row {row}: {error}") from error
    return Row(*(table.column(name)[0].as_py() for name in SCHEMA.names))


def _damaged(store: Store, shard: Shard, fault: object) -> ShardError:
    return ShardError(f"{store.url(shard.key)}: missing or damaged ({fault}): run python -m jobs.prepare CONFIG again")
