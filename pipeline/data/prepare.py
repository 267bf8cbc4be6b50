"""Prepares a source, or the generated data set, for training: all of it or nothing.

On a cluster, Ray Data does the work. Without a cluster, threads do it, because starting a cluster takes longer.

Packed, the bytes are copied into Parquet shards (labels in colours as labels of ids); in place, they stay where they are. Either
way every file is read, decoded and checked, then an index, a record of the source and a manifest are written. All faults are
collected; if there is any, everything written is deleted.
"""

import logging
import pickle
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline import own_cores
from pipeline.cluster import connect, shared
from pipeline.cluster.task_errors import task_errors
from pipeline.config.config import Config
from pipeline.data import synthetic
from pipeline.data.classes import Classes
from pipeline.data.index import MEMBERS_ROWS, PAGE_ROWS, Entry, digest, members_key, page_key, write_index
from pipeline.data.labels import inspect_pair, misnumbered, unteachable
from pipeline.data.manifest import Manifest, read_manifest, write_manifest
from pipeline.data.shards import Row, write_shard
from pipeline.data.source.find import Item, Source, find_source, source_identity
from pipeline.data.source.pairing import Pair
from pipeline.data.source.record import record_in, record_key, samples_of, write_record
from pipeline.data.statistics import PackResult, entries_of, manifest_of, members_of, of_split
from pipeline.errors import ShardError, SourceError, StorageError
from pipeline.images import codec
from pipeline.storage.probe import check
from pipeline.storage.retry import Failed
from pipeline.storage.store import Store, open_store

logger = logging.getLogger(__name__)


UNDONE = "nothing was written: fix the source and run jobs.prepare again"


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
    known: Classes
    packed: bool = True
    """Whether the data set is packed; also true where `jobs.plan` only surveys its source."""


def prepare(config: Config) -> Manifest:
    """Prepares the data set and returns its manifest. Only reads the manifest if the source and settings have not changed.

    Raises StorageError or SourceError. Nothing half written remains then, and an earlier data set stays valid: new shards
    and index are written to a new folder, and the manifest is replaced last.
    """
    check(open_store(config.storage.path, config.storage))
    store = open_store(config.data_url, config.storage)
    source = find_source(config)
    made_from = source_identity(config, source)
    found = _already(store, made_from, config)
    if found:
        if not store.exists(record_key(found)):  # an earlier version wrote none
            _record(store, record_key(found), source)
        logger.info("%s: already prepared from this source with these settings", store.root)
        return _accounted(found, source)
    # A new folder for each attempt, so that a failed one never deletes the shards of another or of the current manifest.
    prefix = f"{made_from[:16]}-{uuid.uuid4().hex[:8]}"
    try:
        tasks = list(_work(config, source, store if config.data.packed else None, prefix))
        done = _run(tasks, config)
        manifest = _accounted(manifest_of(config, source.known, done, made_from, prefix), source)
        if reasons := unteachable(manifest):
            raise SourceError([f"{what}: {fix}" for what, fix in reasons], UNDONE)
        _record(store, record_in(prefix), source)
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
    return _accounted(manifest_of(config, source.known, done, source_identity(config, source), ""), source).sealed()


def _accounted(manifest: Manifest, source: Source) -> Manifest:
    """The manifest with the account of the source's files."""
    if source.inventory is None:
        return manifest
    return replace(manifest, files=source.inventory.lines(), left_out=source.inventory.warnings())


def _record(store: Store, key: str, source: Source) -> None:
    if source.store:
        write_record(store, key, source.store.root, samples_of(source.splits, source.listing))


def _already(store: Store, made_from: str, config: Config) -> Manifest | None:
    try:
        manifest = read_manifest(store)
    except ShardError:
        return None
    return manifest if manifest.source == made_from and _written(manifest, config) <= set(store.list()) else None


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
    for split, samples in source.splits.items():
        for number, start in enumerate(range(0, len(samples), rows)):
            key = shard_key(prefix, split, number)
            items = samples[start : start + rows]
            yield PackTask(source.store, shards, key, split, items, size, source.known, config.data.packed)


def _run(tasks: list[PackTask], config: Config) -> list[PackResult]:
    """The results of the tasks, in the order of the tasks; logs progress. Raises SourceError with all faults."""
    results = _by_ray_data(tasks, config) if connect.joined() else _in_threads(tasks)
    done: dict[int, PackResult] = {}
    start = last_line = time.monotonic()
    with closing(results):  # no task writes on when this has ended, also after Ctrl-C
        for number, result in results:
            done[number] = result
            if time.monotonic() - last_line > 2 or len(done) == len(tasks):
                last_line = time.monotonic()
                logger.info("prepare: %d of %d parts, %.0f s", len(done), len(tasks), last_line - start)
    faults = [fault for result in done.values() for fault in result.faults]
    if faults:
        stored = np.sum([result.pixels for result in done.values()], axis=0)
        cause = misnumbered(tasks[0].known, stored) if config.data.layout == "folders" else None
        raise SourceError([*([f"{config.data.source}: {cause}"] if cause else []), *sorted(faults)], UNDONE)
    return [done[number] for number in range(len(tasks))]


def _in_threads(tasks: list[PackTask]) -> Generator[tuple[int, PackResult], None, None]:
    """(number, result) of each task. Threads run in parallel, because reading and decoding release Python's global lock."""
    pool = ThreadPoolExecutor(own_cores())
    try:
        yield from enumerate(pool.map(pack, tasks))
    finally:
        pool.shutdown(cancel_futures=True)


def _by_ray_data(tasks: list[PackTask], config: Config) -> Generator[tuple[int, PackResult], None, None]:
    """(number, result) of each task, in the order of completion."""
    source = [shared.Place("data.source", str(config.data.source))] if tasks and tasks[0].source else []
    output = [shared.Place("storage.path", config.storage.path, written=True)] if tasks and tasks[0].shards else []
    shared.refuse([*source, *output])
    import ray.data  # imported here because only a cluster needs it

    # Without this, Ray Data prints its execution plan over our progress lines.
    ray.data.DataContext.get_current().print_on_execution_start = False
    rows = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_task, num_cpus=config.data.cpus_per_task)
    with task_errors("lower data.shard_rows, or raise data.cpus_per_task"):
        for row in results.iter_rows():
            done = pickle.loads(row["done"])
            if isinstance(done, Exception):
                raise done
            yield row["number"], done


def _task(row: dict[str, object]) -> dict[str, object]:
    task = pickle.loads(row["task"])  # type: ignore[arg-type]
    try:
        done: PackResult | Exception = pack(task)
    except Exception as error:  # a value, because Ray Data sends an exception as the text of its traceback
        done = error
    return {"number": row["number"], "done": pickle.dumps(done)}


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
    data, faults = [], list[str]()
    for key in (item.image, item.label):
        try:
            data.append(task.source.read(key))
        except Exception as error:  # of any type: one odd file must not hide the faults of the others
            if isinstance(error.__cause__, Failed) and not error.__cause__.final:
                raise  # the store is away: every other file would wait for it too
            faults.append(_unread(task.source.url(key), error))
    if faults:
        return Row(item.sample_id, b"", b"", 0, 0), np.zeros(256, np.int64), faults
    where = task.source.url(item.image), task.source.url(item.label)
    ids, (size, counts, faults) = inspect_pair(where, data[0], data[1], task.known, task.packed)
    return Row(item.sample_id, data[0], ids, *size), counts, faults


def _unread(url: str, error: Exception) -> str:
    if isinstance(error, StorageError):
        return str(error)  # names the file and the fix
    reason = str(error) if isinstance(error, OSError) else f"{url}: {type(error).__name__}: {error}"
    return f"{reason}: cannot be read: data.source must be readable from every Ray node"
