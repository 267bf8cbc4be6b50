"""Chooses which checkpoint of a run is loaded and which ones are kept, by manifests, records and checksums.

This file does not import torch: Ray Train's controller reads the newest step before it starts workers, and must start fast.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import safetensors

from pipeline.checkpoints.files import (
    MANIFEST,
    PROGRESS,
    Entry,
    in_safetensors,
    parse,
    read_manifest,
    read_verified,
    verify,
    with_score,
)
from pipeline.errors import CheckpointError, StorageError
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)
T = TypeVar("T")


def folder_name(step: int) -> str:
    """Folder of the checkpoint after `step` optimizer steps."""
    return f"step-{step:06d}"


def latest_step(store: Store) -> int:
    """Step of the newest checkpoint whose every byte verifies, or 0. Logs a warning for each newer one that does not."""

    def whole(name: str) -> int:
        sha256, entries = read_manifest(store, name)
        for file in entries:
            if file != PROGRESS:
                key = f"{name}/{file}"
                with in_safetensors(store.url(key)):
                    safetensors.deserialize(read_verified(store, key, entries[file]))  # type: ignore[no-untyped-call]
        return int(read_progress(store, name, sha256, entries)["step"])

    return first_whole(store, folders(store), whole) or 0


def newest_progress(store: Store) -> dict[str, Any] | None:
    """Progress of the newest checkpoint, whose weights are not verified. None if there is none."""
    return next((progress for _, progress in recorded(store)), None)


def best(store: Store) -> str | None:
    """Folder name of the checkpoint with the highest mIoU; of equals, the later one. None if none has a score."""
    return next(map(folder_name, ranked(recorded(store))), None)


def miou(progress: Mapping[str, Any]) -> float | None:
    """The mIoU in a checkpoint's progress; None if it was not validated."""
    found: float | None = progress.get("metrics", {}).get("miou")
    return found


def unscored(store: Store) -> list[int]:
    """Steps of the checkpoints that were not validated, oldest first."""
    return sorted(step for step, progress in recorded(store) if miou(progress) is None)


def prune(store: Store, keep: int, *, stored: str | None = None) -> None:
    """Deletes checkpoints older than the newest one that verifies, torn ones included, except those that are kept.

    Kept are the best by mIoU, the newest `keep`, and all that are newer than the newest one with a score, because their scores
    may still be pending. A torn checkpoint newer than the one that verifies may still be uploading, so it stays too. Nothing is
    deleted before a checkpoint that stays is verified byte by byte. `stored` names a folder that was just uploaded and read
    back, which is not read again. A failure is logged as a warning; the next call tries again.
    """
    try:
        old = _dispensable(store, keep, stored)
    except StorageError as error:
        logger.warning("old checkpoints not checked: %s", error)
        return
    for name in old:
        _delete(store, name)


def read_progress(store: Store, name: str, sha256: str, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Progress of a checkpoint with this manifest, including a score added later. Raises CheckpointError."""
    key = f"{name}/{PROGRESS}"
    progress = parse(store.url(key), read_verified(store, key, entries[PROGRESS]))
    if not isinstance(progress.get("step"), int):
        raise CheckpointError(f"{store.url(key)}: has no `step`")
    return with_score(store, name, sha256, progress)


def folders(store: Store) -> dict[int, dict[str, int]]:
    """Step -> file -> size, of all checkpoints under the store, whole or torn, newest first."""
    found: dict[int, dict[str, int]] = {}
    for key, size, _ in store.listing():
        folder, _, file = key.partition("/")
        step = folder.removeprefix("step-")
        if file and step.isdecimal() and folder == folder_name(int(step)):
            found.setdefault(int(step), {})[file] = size
    return dict(sorted(found.items(), reverse=True))


def recorded(store: Store) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, progress) of every checkpoint, newest first; torn ones are skipped with a warning.

    Verifies the bytes of progress.json, but only the existence and size of the other files.
    """
    for step, held in folders(store).items():
        name = folder_name(step)
        try:
            sha256, entries = read_manifest(store, name)
            for file, entry in entries.items():
                if held.get(file) != entry.bytes:
                    url, size = store.url(f"{name}/{file}"), held.get(file, "no")
                    raise CheckpointError(f"{url}: {size} bytes, but the manifest lists {entry.bytes}")
            progress = read_progress(store, name, sha256, entries)
        except CheckpointError as error:
            logger.warning("checkpoint skipped: %s", error)
        else:
            yield step, progress


def ranked(records: Iterable[tuple[int, dict[str, Any]]]) -> list[int]:
    """Steps by mIoU, best first; of equals, the later one first. Steps without a finite score are skipped."""
    scores = [(miou(progress), step) for step, progress in records]
    return [step for _, step in sorted((s for s in scores if s[0] is not None and math.isfinite(s[0])), reverse=True)]


def first_whole(store: Store, steps: Iterable[int], take: Callable[[str], T]) -> T | None:
    """Result of `take(folder)` for the first checkpoint that raises no CheckpointError; None if all do. Tries each once."""
    torn, found, instead = [], None, "no other checkpoint is left"
    for step in steps:
        try:
            found, instead = take(folder_name(step)), f"loaded instead: {store.url(folder_name(step))}"
            break
        except CheckpointError as error:
            torn.append(error)
    for fault in torn:
        logger.warning("checkpoint skipped: %s; %s", fault, instead)
    return found


def _dispensable(store: Store, keep: int, stored: str | None) -> list[str]:
    whole = dict(recorded(store))
    newest = next((step for step in whole if folder_name(step) == stored or _verifies(store, folder_name(step))), None)
    if newest is None:
        return []
    good = {step: progress for step, progress in whole.items() if step <= newest}
    scored = max((step for step, progress in good.items() if miou(progress) is not None), default=-1)
    kept = {*list(good)[:keep], *ranked(good.items())[:1], *(step for step in good if step > scored)}
    return [folder_name(step) for step in folders(store) if step < newest and step not in kept]


def _verifies(store: Store, name: str) -> bool:
    try:
        verify(store, name)
    except CheckpointError as error:
        logger.warning("checkpoint skipped: %s", error)
        return False
    return True


def _delete(store: Store, name: str) -> None:
    try:
        # The manifest first, so that a half-deleted folder is never mistaken for a whole checkpoint.
        for prefix in (f"{name}/{MANIFEST}", name):
            store.delete(prefix)
            if store.list(prefix):  # s3fs does not report refusals inside the response to a deletion
                raise StorageError(f"{store.url(prefix)}: was deleted without an error and is still there")
    except StorageError as error:
        logger.warning("old checkpoint not deleted: %s", error)
