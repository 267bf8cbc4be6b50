"""Prepares a source, or the generated data set, for training: all of it or nothing.

On a cluster, Ray Data does the work. Without a cluster, threads do it, because starting a cluster takes longer.

Packed, the bytes are copied into Parquet shards; in place, they stay where they are. Either way every file is read, decoded and
checked, then an index and a manifest are written. All faults are collected; if there is any, everything written is deleted.
"""

import hashlib
import json
import logging
import os
import pickle
import posixpath
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.cluster import connect
from pipeline.config.config import Config
from pipeline.data import synthetic
from pipeline.data.classes import Classes, classes
from pipeline.data.index import MEMBERS_ROWS, PAGE_ROWS, Entry, digest, members_key, page_key, write_index
from pipeline.data.inspection import inspect
from pipeline.data.layouts import find_samples
from pipeline.data.manifest import VERSION, Manifest, read_manifest, write_manifest
from pipeline.data.shards import Row, write_shard
from pipeline.data.source.inventory import Inventory
from pipeline.data.source.pairing import Pair, TextList
from pipeline.data.statistics import PackResult, entries_of, manifest_of, members_of, of_split
from pipeline.errors import ShardError, SourceError
from pipeline.images import codec
from pipeline.storage.probe import check, check_readable
from pipeline.storage.store import Object, Store, open_store

logger = logging.getLogger(__name__)


Item = Pair | int
"""A sample to prepare: a pair of files, or the position of a generated one."""


class Source(NamedTuple):
    """The samples to prepare."""

    store: Store | None
    """Store of the original files; None for `generated`."""
    known: Classes
    splits: dict[str, Sequence[Item]]
    listing: dict[str, Object]
    """The files of the pairs, by key."""
    inventory: Inventory | None
    """The account of all files; None for `generated`."""


@dataclass(frozen=True)
class PackTask:
    """A few samples to check and to pack: one task of Ray Data."""

    source: Store | None
    shards: Store | None
    """Store for the shard; None leaves the samples in place."""
    key: str
    split: str
    items: Sequence[Item]
    size: int
    """Side of generated images in pixels."""
    label_map: dict[int, int]


def prepare(config: Config) -> Manifest:
    """Prepares the data set and returns its manifest. Only reads the manifest if the source and settings have not changed.

    Raises StorageError or SourceError. Nothing half written remains then, and an earlier data set stays valid: new shards
    and index are written to a new folder, and the manifest is replaced last.
    """
    check(open_store(config.storage.path, config.storage))
    store = open_store(config.data_url, config.storage)
    source = find_source(config)
    identity = _identity(config, source)
    found = _already(store, identity, config)
    if found:
        logger.info("%s: already prepared from this source with these settings", store.root)
        return _accounted(found, source)
    # A new folder for each attempt, so that a failed one never deletes the shards of another or of the current manifest.
    prefix = f"{identity[:16]}-{uuid.uuid4().hex[:8]}"
    try:
        tasks = list(_work(config, source, store if config.data.packed else None, prefix))
        done = _run(tasks, config)
        manifest = _accounted(manifest_of(config, source.known, done, identity, prefix), source)
        for name, split in manifest.splits.items():
            part = of_split(done, name)
            members = members_of(part, source.known) if name == "train" else []
            write_index(store, split.index, entries_of(part), members)
        manifest = write_manifest(store, manifest)
    except BaseException:
        store.delete(prefix)
        raise
    logger.info("%s: prepared, fingerprint %s", store.root, manifest.fingerprint[:16])
    return manifest


def survey(config: Config) -> Manifest:
    """The manifest that preparation would write. Every file is read and checked; nothing is written.

    Raises StorageError or SourceError.
    """
    source = find_source(config)
    tasks = list(_work(config, source, None, ""))
    done = _run(tasks, config)
    return _accounted(manifest_of(config, source.known, done, _identity(config, source), ""), source).sealed()


def find_source(config: Config) -> Source:
    """The samples of the configured source. Raises StorageError, or SourceError with every fault of the layout."""
    data = config.data
    if data.layout == "generated":
        made: dict[str, Sequence[Item]] = {"train": range(data.generated.num_train), "val": range(data.generated.num_val)}
        return Source(None, classes("generated", None), made, {}, None)
    store = open_store(str(data.source), config.storage)
    check_readable(store)
    lists = {str(split): _list(config, store, split, given) for split, given in data.lists.items()}
    found = find_samples(data.layout, store, lists, label_suffix=data.label_suffix, val_fraction=data.val_fraction)
    return Source(store, classes(data.layout, store), {**found.splits}, found.objects, found.inventory)


def _list(config: Config, source: Store, split: str, given: str) -> TextList:
    """The list of a split: a path below the source, or a full path or address of any other place."""
    setting = f"data.lists.{split} = {given}"
    path = given if "://" in given else os.path.expanduser(given)
    if path.startswith("../") and not source.is_s3:
        path = os.path.normpath(f"{source.root}/{path}")
    inside = path.removeprefix(f"{source.root}/")
    if "://" in inside or os.path.isabs(inside):
        folder, name = posixpath.split(inside)
        return TextList(open_store(folder, config.storage), name, setting)
    return TextList(source, posixpath.normpath(inside), setting)


def _accounted(manifest: Manifest, source: Source) -> Manifest:
    """The manifest with the account of the source's files."""
    if source.inventory is None:
        return manifest
    return replace(manifest, files=source.inventory.lines(), left_out=source.inventory.warnings())


def _identity(config: Config, source: Source) -> str:
    """sha256 of the names, sizes and versions of all files and of every setting that changes what is written."""
    data = config.data
    listing: object = [data.generated.model_dump(), synthetic.VERSION, synthetic.SEED]
    if source.store:
        listing = [source.store.root, {name: [asdict(p) for p in pairs if isinstance(p, Pair)] for name, pairs in
                   source.splits.items()}, sorted(source.listing.values())]  # fmt: skip
    settings = [VERSION, data.name, data.layout, data.packed, data.packed and data.shard_rows, asdict(source.known)]
    return hashlib.sha256(json.dumps([settings, listing], sort_keys=True).encode()).hexdigest()


def _already(store: Store, identity: str, config: Config) -> Manifest | None:
    try:
        manifest = read_manifest(store)
    except ShardError:
        return None
    return manifest if manifest.source == identity and _written(manifest, config) <= set(store.list()) else None


def _written(manifest: Manifest, config: Config) -> set[str]:
    """Keys of the shards and index pages of a manifest."""
    keys = set()
    for name, split in manifest.splits.items():
        prefix = split.index.split("/")[0]
        shards = range(-(-split.num_images // config.data.shard_rows)) if manifest.packed else ()
        keys |= {shard_key(prefix, name, number) for number in shards}
        keys |= {page_key(split.index, number) for number in range(-(-split.num_images // PAGE_ROWS))}
        for label, num_members in enumerate(split.images if name == "train" else ()):
            keys |= {members_key(split.index, label, number) for number in range(-(-num_members // MEMBERS_ROWS))}
    return keys


def shard_key(prefix: str, split: str, number: int) -> str:
    """Key of a shard."""
    return f"{prefix}/{split}-{number:06d}.parquet"


def _work(config: Config, source: Source, shards: Store | None, prefix: str) -> Iterator[PackTask]:
    rows, size = config.data.shard_rows, config.data.generated.size
    for split, items in source.splits.items():
        for number, start in enumerate(range(0, len(items), rows)):
            key = shard_key(prefix, split, number)
            yield PackTask(source.store, shards, key, split, items[start : start + rows], size, source.known.label_map)


def _run(tasks: list[PackTask], config: Config) -> list[PackResult]:
    """The results of the tasks, in the order of the tasks; logs progress. Raises SourceError with all faults."""
    results = _by_ray_data(tasks, config) if connect.joined() else _in_threads(tasks)
    done: dict[int, PackResult] = {}
    start = last_line = time.monotonic()
    for number, result in results:
        done[number] = result
        if time.monotonic() - last_line > 2 or len(done) == len(tasks):
            last_line = time.monotonic()
            logger.info("prepare: %d of %d parts, %.0f s", len(done), len(tasks), last_line - start)
    faults = [fault for result in done.values() for fault in result.faults]
    if faults:
        raise SourceError(sorted(faults), "nothing was written: fix the source and run jobs.prepare again")
    return [done[number] for number in range(len(tasks))]


def _in_threads(tasks: list[PackTask]) -> Iterator[tuple[int, PackResult]]:
    """(number, result) of each task. Threads run in parallel, because reading and decoding release Python's global lock."""
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        yield from enumerate(pool.map(pack, tasks))
    finally:
        pool.shutdown(cancel_futures=True)


def _by_ray_data(tasks: list[PackTask], config: Config) -> Iterator[tuple[int, PackResult]]:
    """(number, result) of each task, in the order of completion."""
    connect.join()
    import ray.data  # imported here because only a cluster needs it

    # Without this, Ray Data prints its execution plan over our progress lines.
    ray.data.DataContext.get_current().print_on_execution_start = False
    rows = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_task, num_cpus=config.data.cpus_per_task)
    for row in results.iter_rows():
        yield row["number"], pickle.loads(row["done"])


def _task(row: dict[str, object]) -> dict[str, object]:
    task = pickle.loads(row["task"])  # type: ignore[arg-type]
    return {"number": row["number"], "done": pickle.dumps(pack(task))}


def pack(task: PackTask) -> PackResult:
    """Reads and checks the samples of a task and writes their shard if they are packed. Faults are returned, not raised."""
    rows: list[Row] = []
    faults: list[str] = []
    histograms: list[npt.NDArray[np.int64]] = []
    for item in task.items:
        row, counts, found = _load(item, task)
        faults += found
        rows.append(row)
        histograms.append(counts)
    entries: list[Entry] = []
    if not faults:
        try:
            entries = write_shard(task.shards, task.key, rows) if task.shards else list(map(_in_place, task.items, rows))
        except Exception as error:  # of any type, from any store; reported with the other faults
            faults.append(f"{task.shards and task.shards.url(task.key)}: cannot be written: {type(error).__name__}: {error}")
    counts = np.stack(histograms)
    return PackResult(task.split, tuple(entries), tuple(faults), counts.sum(0), np.packbits(counts > 0, axis=1))


def _in_place(item: Item, row: Row) -> Entry:
    image, label = (item.image, item.label) if isinstance(item, Pair) else ("", "")
    return Entry(row.sample_id, image, 0, len(row.image), digest(row.image), label, 0, len(row.label), digest(row.label),
                 row.height, row.width)  # fmt: skip


def _load(item: Item, task: PackTask) -> tuple[Row, npt.NDArray[np.int64], list[str]]:
    """The sample, its number of pixels by stored label id int64[256], and its faults."""
    if isinstance(item, int):
        index = synthetic.split_index(task.split, item)
        image, label = synthetic.sample(index, synthetic.SEED, task.size)
        encoded = codec.encode_png(image), codec.encode_png(label)
        return Row(f"{task.split}-{item:06d}", *encoded, *label.shape), np.bincount(label.ravel(), minlength=256), []
    assert task.source is not None
    try:
        data = task.source.read(item.image), task.source.read(item.label)
    except (OSError, ValueError) as error:
        fault = f"{error}: cannot be read: data.source must be readable from every Ray node"
        return Row(item.sample_id, b"", b"", 0, 0), np.zeros(256, np.int64), [fault]
    where = task.source.url(item.image), task.source.url(item.label)
    size, counts, faults = inspect(*where, *data, task.label_map)
    return Row(item.sample_id, *data, *size), counts, faults
