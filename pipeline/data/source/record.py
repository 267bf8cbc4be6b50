"""What a data set was prepared from: its identity, a record of the source's files beside the index, and what has changed since.

The record is one Parquet file; a sample takes 20 to 50 bytes in it. It is read only if the identity has changed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.config import Config
from pipeline.data import synthetic
from pipeline.data.classes import Classes
from pipeline.data.manifest import VERSION, Manifest
from pipeline.data.source.pairing import Pair
from pipeline.errors import ShardError
from pipeline.storage.store import Object, Store

Splits = Mapping[str, Sequence[Pair | int]]
Samples = dict[str, dict[str, tuple[Object, Object]]]
"""Split -> sample id -> the objects of its image and of its label."""

ROOT = b"data.source"
SCHEMA = pa.schema(
    [
        ("split", pa.dictionary(pa.int32(), pa.string())), ("sample_id", pa.string()),
        ("image", pa.string()), ("image_bytes", pa.int64()), ("image_version", pa.string()),
        ("label", pa.string()), ("label_bytes", pa.int64()), ("label_version", pa.string()),
    ]
)  # fmt: skip


def identity(config: Config, root: str | None, known: Classes, splits: Splits, listing: Mapping[str, Object]) -> str:
    """sha256 of the names, sizes and versions of all files and of every setting that changes what is written.

    `root` is the address of the source, None for `generated`.
    """
    data = config.data
    files: object = [data.generated.model_dump(), synthetic.VERSION, synthetic.SEED]
    if root:
        pairs = {name: [asdict(p) for p in split if isinstance(p, Pair)] for name, split in splits.items()}
        files = [root, pairs, sorted(listing.values())]
    classes: dict[str, object] = {"names": known.names, "colors": known.colors, "label_map": known.label_map}
    # Not always, so that data sets of earlier versions keep their identity.
    if more := sorted(item for item in known.color_ids.items() if item[0] not in known.colors):
        classes["color_ids"] = more
    settings = [VERSION, data.name, data.layout, data.packed, data.packed and data.shard_rows, classes]
    return hashlib.sha256(json.dumps([settings, files], sort_keys=True).encode()).hexdigest()


def samples_of(splits: Splits, listing: Mapping[str, Object]) -> Samples:
    """The files of each sample; none for `generated`. A file that has gone since it was paired has no bytes and no version."""

    def found(key: str) -> Object:
        return listing.get(key, Object(key, 0, ""))

    return {
        split: {p.sample_id: (found(p.image), found(p.label)) for p in pairs if isinstance(p, Pair)}
        for split, pairs in splits.items()
    }


def record_key(manifest: Manifest) -> str:
    """Key of the record of a prepared data set."""
    return record_in(manifest.splits["train"].index.split("/")[0])


def record_in(prefix: str) -> str:
    """Key of the record in the folder of one preparation."""
    return f"{prefix}/source.parquet"


def write_record(store: Store, key: str, root: str, samples: Samples) -> None:
    """Writes the record of a source at address `root`."""
    rows = [(split, i, *image, *label) for split, ids in samples.items() for i, (image, label) in ids.items()]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    table = pa.table(columns, schema=SCHEMA.with_metadata({ROOT: root.encode()}))
    pq.write_table(table, sink, compression="zstd")
    store.write(key, sink.getvalue().to_pybytes())


def read_record(store: Store, manifest: Manifest) -> tuple[str, Samples] | None:
    """(address, files) of the source of a prepared data set; None if an earlier version prepared it, without a record.

    Raises ShardError if the record is damaged.
    """
    key = record_key(manifest)
    try:
        table = pq.read_table(pa.BufferReader(store.read(key)))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{store.url(key)}: damaged ({error}): run python -m jobs.prepare CONFIG again") from error
    samples: Samples = {}
    for split, sample_id, *files in zip(*(column.to_pylist() for column in table.columns), strict=True):
        samples.setdefault(split, {})[sample_id] = Object(*files[:3]), Object(*files[3:])
    return table.schema.metadata[ROOT].decode(), samples


def differences(before: Samples, now: Samples) -> list[str]:
    """What changed in each split: `samples of train: 3 added (first: a.png), 1 changed (first: b.png)`; empty if nothing did."""
    found = []
    for split in dict.fromkeys([*before, *now]):
        old, new = before.get(split, {}), now.get(split, {})
        kinds = {
            "added": [new[i][0].key for i in new if i not in old],
            "changed": [next(b for a, b in zip(old[i], new[i], strict=True) if a != b).key
                        for i in new if i in old and old[i] != new[i]],
            "removed": [old[i][0].key for i in old if i not in new],
        }  # fmt: skip
        parts = [f"{len(keys)} {kind} (first: {keys[0]})" for kind, keys in kinds.items() if keys]
        if parts:
            found.append(f"samples of {split}: {', '.join(parts)}")
    return found
