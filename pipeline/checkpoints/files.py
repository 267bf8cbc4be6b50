"""The files of a checkpoint: it is valid only if the manifest, written last, matches every byte of the others (law 7)."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from pipeline.errors import CheckpointError
from pipeline.storage.store import Store

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
PROGRESS, MANIFEST = "progress.json", "manifest.json"
SCORE = "score.json"
"""File with a score that was added after the checkpoint was stored. Not in the manifest, because a manifest never changes."""
KEPT = "kept.json"
"""File that marks a checkpoint to which MLflow refers, so that it is never deleted. Not in the manifest either."""
FILES = (MODEL, OPTIMIZER, AVERAGE, PROGRESS, MANIFEST, SCORE, KEPT)
SET_ASIDE = "set-aside"
"""Folder of a run for checkpoints that cannot be read and whose place is needed."""

OTHER_VERSION = "either damaged or written by another, perhaps later, version of this program"

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """The manifest's entry of a file."""

    sha256: str
    bytes: int


def seal(folder: Path, files: Iterable[str]) -> None:
    """Writes the manifest of `files` in a local folder. The files are read in pieces."""
    entries = {}
    for file in files:
        with (folder / file).open("rb") as opened:
            entries[file] = Entry(hashlib.file_digest(opened, "sha256").hexdigest(), (folder / file).stat().st_size)
    (folder / MANIFEST).write_bytes(_as_json(entries))


class Unfinished(CheckpointError):
    """A checkpoint without a manifest: its upload did not end, or it is being deleted."""


def foreign(files: Iterable[str]) -> list[str]:
    """The names of files in a checkpoint that this program does not write.

    Hidden files are not counted: desktops put them everywhere.
    """
    return [file for file in files if file not in FILES and not file.startswith(".")]


def upload(folder: Path, store: Store, name: str) -> None:
    """Copies a saved folder to `<store>/<name>`, the manifest last. Each file is read back from the store.

    A checkpoint in that place that cannot be read is set aside first, never overwritten.
    One whole file at a time is in memory, because a request that is retried needs its whole body. Raises CheckpointError, which
    names bucket and key, if the store holds something else than was saved: some stores report success and keep nothing. Raises
    StorageError if the store refuses.
    """
    if held := [key for key in store.list() if key.startswith(f"{name}/")]:
        _make_room(store, name, held)
    manifest = (folder / MANIFEST).read_bytes()
    for file, entry in [*_entries(str(folder / MANIFEST), manifest).items(), (MANIFEST, entry_of(manifest))]:
        _write_whole(store, f"{name}/{file}", (folder / file).read_bytes(), entry)


def verify(store: Store, name: str) -> None:
    """Compares all files of `<store>/<name>` with its manifest, in pieces. Raises CheckpointError with the faulty file."""
    for file, entry in read_manifest(store, name)[1].items():
        if held := store.difference(f"{name}/{file}", *entry):
            url = store.url(f"{name}/{file}")
            raise CheckpointError(f"{url}: the manifest lists {entry.bytes} bytes but the store holds {held}")


def _make_room(store: Store, name: str, held: list[str]) -> None:
    """Sets a checkpoint aside that cannot be read. From one that can be, deletes the manifest: it would not match meanwhile."""
    files = [key.removeprefix(f"{name}/") for key in held]
    try:
        if odd := foreign(files):
            raise CheckpointError(f"{store.url(name)}: holds {', '.join(odd)}, which this version does not write")
        if MANIFEST in files:
            verify(store, name)
            store.delete(f"{name}/{MANIFEST}")
        return
    except CheckpointError as error:
        fault = error
    taken, number, place = store.list(SET_ASIDE), 1, f"{SET_ASIDE}/{name}"
    while any(key.startswith(f"{place}/") for key in taken):
        number += 1
        place = f"{SET_ASIDE}/{name}-{number}"
    for file in files:
        _write_whole(store, f"{place}/{file}", _read(store, f"{name}/{file}"))
    for key in held:
        store.delete(key)
    logger.warning("%s; its place is needed, so it was moved to %s", fault, store.url(place))


def mark_kept(store: Store, name: str, reason: str) -> None:
    """Marks a checkpoint so that `retention.prune` never deletes it. Raises CheckpointError if the store loses the mark."""
    if not store.exists(f"{name}/{KEPT}"):
        _write_whole(store, f"{name}/{KEPT}", json.dumps({"reason": reason}).encode())


def write_score(store: Store, name: str, sha256: str, metrics: Mapping[str, Any], score: Mapping[str, Any]) -> None:
    """Adds a score to `<store>/<name>`, which was stored without one; `sha256` is the checksum of its manifest.

    The file is read back. Raises CheckpointError if the store holds something else.
    """
    data = json.dumps({"manifest_sha256": sha256, "metrics": metrics, "score": score}, indent=1).encode()
    _write_whole(store, f"{name}/{SCORE}", data)


def with_score(store: Store, name: str, sha256: str, progress: dict[str, Any]) -> dict[str, Any]:
    """The progress of a checkpoint, with the score that was added later. A bad score file is ignored with a warning."""
    url = store.url(f"{name}/{SCORE}")
    if "miou" in progress.get("metrics", {}):
        return progress
    try:
        given = parse(url, store.read(f"{name}/{SCORE}"))
        if given.get("manifest_sha256") != sha256:
            raise CheckpointError(f"{url}: belongs to another checkpoint of this name")
        metrics, score = given.get("metrics"), given.get("score")
        if not (isinstance(metrics, dict) and isinstance(metrics.get("miou"), float) and isinstance(score, dict)):
            raise CheckpointError(f"{url}: must give `metrics` with a miou, and `score`")
    except FileNotFoundError:
        return progress
    except CheckpointError as error:
        logger.warning("score ignored: %s", error)
        return progress
    return progress | {"metrics": progress.get("metrics", {}) | metrics, "score": score}


def read_manifest(store: Store, name: str) -> tuple[str, dict[str, Entry]]:
    """(sha256, file -> entry) of a checkpoint's manifest. Raises CheckpointError; Unfinished if there is no manifest."""
    try:
        data = store.read(f"{name}/{MANIFEST}")
    except FileNotFoundError as error:
        raise Unfinished(f"{store.url(f'{name}/{MANIFEST}')}: missing") from error
    return entry_of(data).sha256, _entries(store.url(f"{name}/{MANIFEST}"), data)


def read_verified(store: Store, key: str, entry: Entry) -> bytes:
    """Content of a file. Raises CheckpointError if it is missing or does not match its entry in the manifest."""
    data = _read(store, key)
    if entry_of(data) != entry:
        raise CheckpointError(f"{store.url(key)}: {len(data)} bytes do not match the manifest's sha256 and size")
    return data


@contextmanager
def in_safetensors(url: str) -> Iterator[None]:
    """Raises CheckpointError, which names `url`, if its content is not in the safetensors format."""
    try:
        yield
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{url}: not in the safetensors format ({error})") from error


def entry_of(data: bytes) -> Entry:
    """The manifest's entry of a file with this content."""
    return Entry(hashlib.sha256(data).hexdigest(), len(data))


def parse(url: str, data: bytes) -> dict[str, Any]:
    """Parses a JSON object. Raises CheckpointError, which names `url`."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{url}: not valid JSON ({len(data)} bytes)") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{url}: must be a JSON object, not {type(tree).__name__}")
    return tree


def _entries(url: str, data: bytes) -> dict[str, Entry]:
    tree = parse(url, data)
    try:
        entries = {file: Entry(**fields) for file, fields in tree.items()}
    except TypeError as error:
        raise CheckpointError(f"{url}: must give `sha256` and `bytes` of each file; {OTHER_VERSION}") from error
    files = {MODEL, OPTIMIZER, PROGRESS}
    if not files <= set(entries) <= files | {AVERAGE}:
        listed, needed = ", ".join(entries) or "no file", ", ".join(sorted(files))
        raise CheckpointError(f"{url}: lists {listed}; must list {needed}; {OTHER_VERSION}")
    if data != _as_json(entries):  # a change that JSON ignores, such as another blank
        raise CheckpointError(f"{url}: not as it was written")
    return entries


def _as_json(entries: Mapping[str, Entry]) -> bytes:
    return json.dumps({file: entry._asdict() for file, entry in entries.items()}, indent=1).encode()


def _write_whole(store: Store, key: str, data: bytes, entry: Entry | None = None) -> None:
    """Writes a file and reads it back. `entry`: what it must hold; by default these bytes."""
    store.write(key, data)
    sha256, size = entry or entry_of(data)
    if held := store.difference(key, sha256, size):
        raise CheckpointError(f"{store.url(key)}: {size} bytes were written but the store holds {held}")


def _read(store: Store, key: str) -> bytes:
    try:
        return store.read(key)
    except FileNotFoundError as error:
        raise CheckpointError(f"{store.url(key)}: missing") from error
