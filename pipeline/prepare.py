"""Packs a source folder, or the generated data set, into Parquet shards and a manifest, by Ray Data: all of it or nothing.

Every file is read, decoded and checked. All faults are collected; with one fault or more, what was written is deleted again.
"""

import hashlib
import json
import logging
import pickle
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import cluster, generated, transforms
from pipeline.config import Config
from pipeline.layouts import IGNORE, SPLITS, Classes, LayoutError, Pair, classes, find_pairs
from pipeline.shards import VERSION as SHARD_VERSION
from pipeline.shards import Manifest, Row, Shard, ShardError, Split, read_manifest, write_manifest, write_shard
from pipeline.storage import Store, check, open_store

logger = logging.getLogger(__name__)

SHOWN_FAULTS = 20
PNG = b"\x89PNG\r\n\x1a\n"


class PrepareError(ValueError):
    """Faults of the source's files; `.faults` holds all of them, one `file: fault` each, the message the first 20."""

    def __init__(self, faults: list[str]) -> None:
        more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        super().__init__(
            "\n".join([*faults[:SHOWN_FAULTS], *more, "nothing was written: mend the source and run jobs.prepare again"])
        )
        self.faults = faults


Item = Pair | int
"""A sample to pack: a pair of files, or the position of a generated one."""


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: the unit of work of Ray Data."""

    store: Store
    key: str
    split: str
    items: Sequence[Item]
    size: int
    """Side of generated images in pixels."""
    label_map: dict[int, int]


@dataclass(frozen=True)
class Done:
    """A job's outcome: no shard when there are faults."""

    split: str
    shard: Shard | None
    faults: tuple[str, ...]
    histogram: npt.NDArray[np.int64]
    """int64[256]: pixels by stored label id."""
    sizes: tuple[tuple[int, int], ...]


def prepare(config: Config) -> Manifest:
    """The data set's manifest, packed now or found already packed from the same source and settings.

    Raises StorageError, LayoutError or PrepareError, and then leaves nothing half written: the data set that was there
    before, if any, stays valid, because new shards lie beside it and the manifest is replaced last.
    """
    check(open_store(config.storage.path, config.storage))
    store = open_store(config.data_url, config.storage)
    items, known = _items(config), classes(config.data.layout, config.data.source)
    source = _source_hash(config, items, known)
    found = _already(store, source)
    if found:
        logger.info("%s: already prepared from this source with these settings", store.root)
        return found
    # An attempt of its own, so that a failing one never deletes the shards of another or of the manifest in force.
    prefix = f"{source[:16]}-{uuid.uuid4().hex[:8]}"
    jobs = list(_jobs(config, store, prefix, items, known))
    try:
        done = _run(jobs, config)
        faults = [fault for outcome in done for fault in outcome.faults]
        if faults:
            raise PrepareError(sorted(faults))
        manifest = write_manifest(store, _manifest(config, known, done, source))
    except BaseException:
        store.delete(prefix)
        raise
    logger.info("%s: prepared, fingerprint %s", store.root, manifest.fingerprint[:16])
    return manifest


def _items(config: Config) -> dict[str, Sequence[Item]]:
    data = config.data
    if data.layout == "generated":
        return {"train": range(data.generated.num_train), "val": range(data.generated.num_val)}
    items: dict[str, Sequence[Item]] = {}
    faults: list[str] = []
    for split in SPLITS:
        try:
            items[split] = find_pairs(data.layout, str(Path(str(data.source)).expanduser().absolute()), split)
        except LayoutError as error:
            faults += error.faults
    if faults:
        raise LayoutError(list(dict.fromkeys(faults)))
    return items


def _source_hash(config: Config, items: dict[str, Sequence[Item]], known: Classes) -> str:
    """sha256 of the names, sizes and times of all files and of every setting that shapes the shards."""
    data = config.data
    listing: object = [data.generated.model_dump(), generated.VERSION, generated.SEED]
    if data.layout != "generated":
        pairs = [(split, pair) for split in SPLITS for pair in items[split] if isinstance(pair, Pair)]
        stats = [[Path(f).stat() for f in (p.image, p.label)] for _, p in pairs]
        listing = [
            [split, pair.sample_id, *((s.st_size, s.st_mtime_ns) for s in stat)]
            for (split, pair), stat in zip(pairs, stats, strict=True)
        ]
    content = [SHARD_VERSION, data.name, data.layout, data.shard_rows, asdict(known), listing]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _already(store: Store, source: str) -> Manifest | None:
    try:
        manifest = read_manifest(store)
    except ShardError:
        return None
    keys = {shard.key for split in manifest.splits.values() for shard in split.shards}
    return manifest if manifest.source == source and keys <= set(store.list()) else None


def _jobs(config: Config, store: Store, prefix: str, items: dict[str, Sequence[Item]], known: Classes) -> Iterator[ShardJob]:
    rows, size = config.data.shard_rows, config.data.generated.size
    for split in SPLITS:
        for number, start in enumerate(range(0, len(items[split]), rows)):
            key = f"{prefix}/{split}-{number:06d}.parquet"
            yield ShardJob(store, key, split, items[split][start : start + rows], size, known.label_map)


def _run(jobs: list[ShardJob], config: Config) -> list[Done]:
    """The jobs' outcomes, in the order of the jobs; logs progress."""
    cluster.connect()
    import ray.data  # reads its settings at import: connect() sets them

    # Without this, Ray Data prints its execution plan over our progress lines.
    ray.data.DataContext.get_current().print_on_execution_start = False
    rows = [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(jobs)]
    outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_work, num_cpus=config.data.cpus_per_task)
    done: dict[int, Done] = {}
    start = said = time.monotonic()
    for row in outcomes.iter_rows():
        done[row["number"]] = pickle.loads(row["done"])
        if time.monotonic() - said > 2 or len(done) == len(jobs):
            said = time.monotonic()
            logger.info("prepare: %d of %d shards, %.0f s", len(done), len(jobs), said - start)
    return [done[number] for number in range(len(jobs))]


def _work(row: dict[str, object]) -> dict[str, object]:
    job = pickle.loads(row["job"])  # type: ignore[arg-type]
    return {"number": row["number"], "done": pickle.dumps(pack(job))}


def pack(job: ShardJob) -> Done:
    """Reads and checks the job's samples and writes their shard; faults are returned, not raised."""
    rows, faults, histogram = [], [], np.zeros(256, np.int64)
    for item in job.items:
        row, counts, found = _load(item, job)
        faults += found
        if row and not found:
            rows.append(row)
            histogram += counts
    shard = None
    if not faults:
        try:
            shard = write_shard(job.store, job.key, rows)
        except Exception as error:  # any fault of any store; it is reported with the others, and fails the whole
            faults.append(f"{job.store.url(job.key)}: cannot be written: {type(error).__name__}: {error}")
    return Done(job.split, shard, tuple(faults), histogram, tuple((row.height, row.width) for row in rows))


def _load(item: Item, job: ShardJob) -> tuple[Row | None, npt.NDArray[np.int64], list[str]]:
    if isinstance(item, int):
        index = generated.split_index(job.split, item)
        image, label = generated.sample(index, generated.SEED, job.size)
        encoded = transforms.encode_png(image), transforms.encode_png(label)
        return Row(f"{job.split}-{item:06d}", *encoded, *label.shape), np.bincount(label.ravel(), minlength=256), []
    try:
        data = Path(item.image).read_bytes(), Path(item.label).read_bytes()
    except OSError as error:
        fault = f"{error.filename}: cannot be read ({error.strerror}): data.source must be visible on every Ray node"
        return None, np.zeros(256, np.int64), [fault]
    size, counts, faults = inspect(item, *data, job.label_map)
    return Row(item.sample_id, *data, *size), counts, faults


def inspect(
    pair: Pair, image: bytes, label: bytes, label_map: dict[int, int]
) -> tuple[tuple[int, int], npt.NDArray[np.int64], list[str]]:
    """(height, width), pixels by stored label id int64[256], and every fault of the two files as `file: fault`."""
    pixels, ids, faults = None, None, []
    try:
        check_encoding(image)
        pixels = transforms.decode_image(image)
    except ValueError as error:
        faults.append(f"{pair.image}: {error}")
    try:
        check_encoding(label)
        check_grey(label)
        ids = transforms.decode_label(label)
    except ValueError as error:
        faults.append(f"{pair.label}: {error}")
    if pixels is not None and ids is not None and pixels.shape[:2] != ids.shape:
        (h, w), (height, width) = ids.shape, pixels.shape[:2]
        faults.append(f"{pair.label}: label is {w} x {h} pixels, its image {width} x {height} ({pair.image})")
    counts = np.bincount(ids.ravel(), minlength=256) if ids is not None else np.zeros(256, np.int64)
    illegal = [int(i) for i in np.flatnonzero(counts) if int(i) not in label_map]
    if illegal:
        found = ", ".join(f"{i} ({counts[i]} pixels)" for i in illegal)
        faults.append(f"{pair.label}: label ids outside the map: {found}; legal: {', '.join(map(str, sorted(label_map)))}")
    return (pixels.shape[0], pixels.shape[1]) if pixels is not None else (0, 0), counts, faults


def check_encoding(data: bytes) -> None:
    """Raises ValueError for anything but a whole PNG or JPEG: some decoders fill what is missing with grey and say nothing."""
    if not data:
        raise ValueError("empty file")
    if data.startswith(PNG):
        for kind, start, end in _png_chunks(data):
            if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise ValueError(f"damaged PNG: chunk {kind!r} at byte {start - 8} fails its checksum")
    elif data.startswith(b"\xff\xd8"):
        if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError(f"truncated JPEG: no end marker after {len(data)} bytes")
    else:
        raise ValueError("neither PNG nor JPEG")


def _png_chunks(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(type, start, end) of each chunk's content, up to IEND."""
    place, kind = len(PNG), ""
    while kind != "IEND":
        start = place + 8
        end = start + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : start].decode("latin-1")
        if end + 4 > len(data):
            raise ValueError(f"truncated PNG: ends after {len(data)} bytes, before its IEND")
        yield kind, start, end
        place = end + 4


def check_grey(data: bytes) -> None:
    """Raises ValueError unless the PNG is 8-bit grey: OpenCV turns palette labels into colours, losing the ids."""
    if not data.startswith(PNG):
        raise ValueError("a label must be a PNG: JPEG changes the class ids")
    depth, kind = data[24], data[25]
    names = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
    if (depth, kind) != (8, 0):
        raise ValueError(f"{depth}-bit {names.get(kind, kind)} PNG: a label must be 8-bit grey, value = class id")


def _manifest(config: Config, known: Classes, done: list[Done], source: str) -> Manifest:
    splits = {name: _split([d for d in done if d.split == name], known) for name in SPLITS}
    return Manifest(config.data.name, config.data.layout, known.names, known.colors, known.label_map, splits, source)


def _split(done: list[Done], known: Classes) -> Split:
    histogram: list[int] = np.stack([d.histogram for d in done]).sum(axis=0).tolist()
    pixels = [0] * 256
    for stored, index in known.label_map.items():
        pixels[index] += histogram[stored]
    sizes = Counter(size for d in done for size in d.sizes)
    shards = tuple(d.shard for d in done if d.shard)
    return Split(
        num_images=sum(shard.rows for shard in shards),
        shards=shards,
        pixels=tuple(pixels[: len(known.names)]),
        ignored=pixels[IGNORE],
        sizes=tuple((h, w, n) for (h, w), n in sorted(sizes.items())),
    )
