"""Which of a run's checkpoints is taken, and which ones are kept: by manifests, records and checksums.

Without torch: the process in which Ray Train plans a start asks for the newest step, and is to start fast.
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
    """Step of the newest checkpoint that verifies in every byte, 0 when there is none; warns of each that does not."""

    def whole(name: str) -> int:
        sha256, entries = read_manifest(store, name)
        for file in entries:
            if file != PROGRESS:
                with in_safetensors(store.url(f"{name}/{file}")):
                    safetensors.deserialize(read_verified(store, f"{name}/{file}", entries[file]))  # type: ignore[no-untyped-call]
        return int(read_progress(store, name, sha256, entries)["step"])

    return first_whole(store, folders(store), whole) or 0


def newest_progress(store: Store) -> dict[str, Any] | None:
    """What the newest checkpoint recorded, its weights not verified. None when there is none."""
    return next((progress for _, progress in recorded(store)), None)


def best(store: Store) -> str | None:
    """Folder name of the checkpoint with the highest mIoU, the later one of equals. None when none has a score."""
    return next(map(folder_name, ranked(recorded(store))), None)


def miou(progress: Mapping[str, Any]) -> float | None:
    """The mIoU of a checkpoint that was validated."""
    found: float | None = progress.get("metrics", {}).get("miou")
    return found


def unscored(store: Store) -> list[int]:
    """Steps of the checkpoints that were not validated, the oldest first."""
    return sorted(step for step, progress in recorded(store) if miou(progress) is None)


def prune(store: Store, keep: int, *, stored: str | None = None) -> None:
    """Deletes all checkpoints but the best by mIoU, the newest `keep`, and those that are newer than the newest with a score, for
    their own may be on its way; and torn ones older than the newest that verifies.

    Nothing goes before one that stays has been verified byte by byte; `stored` names a folder whose upload has just been, which
    is then not read again. A newer torn one may still be on its way. What fails is a warning, and tried again by the next call.
    """
    try:
        old = _dispensable(store, keep, stored)
    except StorageError as error:
        logger.warning("old checkpoints not looked for: %s", error)
        return
    for name in old:
        _delete(store, name)


def read_progress(store: Store, name: str, sha256: str, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The record of a checkpoint whose manifest says this, its score included. Raises CheckpointError."""
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
    """(step, progress) of every checkpoint, newest first: the record verified, of the other files only that they are there in
    full size. Torn ones are passed over with a warning."""
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
            logger.warning("checkpoint passed over: %s", error)
        else:
            yield step, progress


def ranked(records: Iterable[tuple[int, dict[str, Any]]]) -> list[int]:
    """Steps by mIoU, the best first, the later one of equals; those without a score are left out."""
    scores = [(miou(progress), step) for step, progress in records]
    return [step for _, step in sorted((s for s in scores if s[0] is not None and math.isfinite(s[0])), reverse=True)]


def first_whole(store: Store, steps: Iterable[int], take: Callable[[str], T]) -> T | None:
    """What `take` makes of the first of these checkpoints' folders that it raises no CheckpointError for; each is tried once."""
    torn, found, instead = [], None, "no other one is left"
    for step in steps:
        try:
            found, instead = take(folder_name(step)), f"taken instead: {store.url(folder_name(step))}"
            break
        except CheckpointError as error:
            torn.append(error)
    for fault in torn:
        logger.warning("checkpoint passed over: %s; %s", fault, instead)
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
        logger.warning("checkpoint passed over: %s", error)
        return False
    return True


def _delete(store: Store, name: str) -> None:
    try:
        # The manifest first: a folder that is deleted by half cannot be taken for whole then.
        for prefix in (f"{name}/{MANIFEST}", name):
            store.delete(prefix)
            if store.list(prefix):  # s3fs does not tell of refusals inside the answer to a deletion
                raise StorageError(f"{store.url(prefix)}: was deleted without an error and is still there")
    except StorageError as error:
        logger.warning("old checkpoint not deleted: %s", error)
