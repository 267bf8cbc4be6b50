"""Chooses which checkpoint of a run is loaded and which ones are kept, by manifests, records and checksums.

This file does not import torch: Ray Train's controller reads the newest step before it starts workers, and must start fast.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import safetensors

from pipeline.checkpoints.files import (
    KEPT,
    MANIFEST,
    OTHER_VERSION,
    PROGRESS,
    Entry,
    Unfinished,
    foreign,
    in_safetensors,
    parse,
    read_manifest,
    read_verified,
    verify,
    with_score,
)
from pipeline.errors import CheckpointError, StorageError
from pipeline.storage.local import is_scratch
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)
T = TypeVar("T")
PARTS = ("metrics", "config", "protocol", "record", "model")
"""Parts of a checkpoint's progress, each a JSON object."""
SHOWN = 10
"""Checkpoints that cannot be read, of which an error shows the fault."""


class Survey(NamedTuple):
    """What a run's folder holds, by step, newest first."""

    held: dict[int, dict[str, int]]
    """File -> size, of each checkpoint."""
    records: dict[int, dict[str, Any]]
    """Progress of those that are complete by their manifest; the bytes of their weights are not compared."""
    faults: dict[int, CheckpointError]
    """Why others cannot be read. Without those whose upload did not end: a crash leaves them, and they are not damaged."""


def folder_name(step: int) -> str:
    """Folder of the checkpoint after `step` optimizer steps."""
    return f"step-{step:06d}"


def latest(store: Store) -> tuple[dict[str, Any] | None, list[str]]:
    """Progress of the newest checkpoint whose every byte verifies, and a line for each newer one, which does not.

    The progress is None for a run that has no checkpoint yet. Raises CheckpointError, which names the checkpoints, if none of
    them verifies.
    """
    held = folders(store)

    def whole(step: int) -> dict[str, Any]:
        name = folder_name(step)
        sha256, entries = _manifest(store, name, held[step])
        for file in entries:
            if file != PROGRESS:
                key = f"{name}/{file}"
                with in_safetensors(store.url(key)):
                    safetensors.deserialize(read_verified(store, key, entries[file]))  # type: ignore[no-untyped-call]
        return read_progress(store, name, sha256, entries)

    return first_whole(store, held, whole)


def latest_step(store: Store) -> int:
    """Step of the checkpoint that `latest` finds; 0 for a run that has none yet. Logs what was skipped; raises as `latest`."""
    found, skipped = latest(store)
    for line in skipped:
        logger.warning("%s", line)
    return int(found["step"]) if found else 0


def newest_progress(store: Store) -> dict[str, Any] | None:
    """Progress of the newest checkpoint, whose weights are not verified. None if there is none.

    Raises CheckpointError if there are checkpoints but none can be read.
    """
    found = survey(store)
    if not found.records and found.faults:
        raise _none_readable(store, list(found.faults.values()))
    return next(iter(found.records.values()), None)


def best(store: Store) -> str | None:
    """Folder name of the checkpoint with the highest mIoU; of equals, the later one. None if none has a score."""
    return next(map(folder_name, ranked(survey(store).records)), None)


def miou(progress: Mapping[str, Any]) -> float | None:
    """The mIoU in a checkpoint's progress; None if it was not validated."""
    found: float | None = progress.get("metrics", {}).get("miou")
    return found


def unscored(store: Store) -> list[int]:
    """Steps of the checkpoints that were not validated, oldest first."""
    return sorted(step for step, progress in survey(store).records.items() if miou(progress) is None)


def prune(store: Store, keep: int, *, stored: str | None = None) -> None:
    """Deletes checkpoints older than the newest one that verifies, unfinished ones included, except those that are kept.

    Kept are the best by mIoU, the newest `keep`, those that are marked because MLflow refers to them, and those newer than the
    newest one with a score whose own score is pending. One that cannot be read stays too, because it may be readable elsewhere or
    later; so do one in which somebody put a file, and an unfinished one that is newer than the one that verifies, because it may
    still be uploading. Nothing is deleted before a checkpoint that stays is verified byte by byte. `stored` names a folder that
    was just uploaded and read back, which is not read again. A failure is logged as a warning; the next call tries again.
    """
    try:
        found = survey(store)
        old = _dispensable(store, found, keep, stored)
    except StorageError as error:
        logger.warning("old checkpoints not checked: %s", error)
        return
    for step in old:
        _delete(store, folder_name(step), list(found.held[step]))


def read_progress(store: Store, name: str, sha256: str, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Progress of a checkpoint with this manifest, including a score added later. Raises CheckpointError."""
    key = f"{name}/{PROGRESS}"
    progress = parse(store.url(key), read_verified(store, key, entries[PROGRESS]))
    if not isinstance(progress.get("step"), int):
        raise CheckpointError(f"{store.url(key)}: has no `step`")
    if odd := [part for part in PARTS if not isinstance(progress.get(part, {}), dict)]:
        raise CheckpointError(f"{store.url(key)}: `{odd[0]}` is no JSON object; {OTHER_VERSION}")
    if not isinstance(miou(progress), float | int | None):
        raise CheckpointError(f"{store.url(key)}: its miou is no number; {OTHER_VERSION}")
    return with_score(store, name, sha256, progress)


def folders(store: Store) -> dict[int, dict[str, int]]:
    """Step -> file -> size, of all checkpoints under the store, whole or torn, newest first; others' hidden files are skipped."""
    found: dict[int, dict[str, int]] = {}
    for key, size, _ in store.listing():
        folder, _, file = key.partition("/")
        step = folder.removeprefix("step-")
        if file and (not file.startswith(".") or is_scratch(file)) and step.isdecimal() and folder == folder_name(int(step)):
            found.setdefault(int(step), {})[file] = size
    return dict(sorted(found.items(), reverse=True))


def survey(store: Store) -> Survey:
    """The checkpoints of a run. Each one that is unfinished or cannot be read is logged as a warning.

    Verifies the bytes of progress.json, but only the existence and size of the other files.
    """
    found = Survey(folders(store), {}, {})
    for step, held in found.held.items():
        name = folder_name(step)
        try:
            sha256, entries = _manifest(store, name, held)
            for file, entry in entries.items():
                if held.get(file) != entry.bytes:
                    url, size = store.url(f"{name}/{file}"), held.get(file, "no")
                    # Without a manifest in the listing, the upload ended after it: the listing is not of the whole checkpoint.
                    kind = CheckpointError if MANIFEST in held else Unfinished
                    raise kind(f"{url}: {size} bytes, but the manifest lists {entry.bytes}")
            found.records[step] = read_progress(store, name, sha256, entries)
        except CheckpointError as error:
            logger.warning("checkpoint skipped: %s", error)
            if not isinstance(error, Unfinished):
                found.faults[step] = error
    return found


def ranked(records: Mapping[int, dict[str, Any]]) -> list[int]:
    """Steps by mIoU, best first; of equals, the later one first. Steps without a finite score are skipped."""
    scores = [(miou(progress), step) for step, progress in records.items()]
    return [step for _, step in sorted((s for s in scores if s[0] is not None and math.isfinite(s[0])), reverse=True)]


def first_whole(
    store: Store, steps: Iterable[int], take: Callable[[int], T], faults: Sequence[CheckpointError] = ()
) -> tuple[T | None, list[str]]:
    """Result of `take(step)` for the first checkpoint that raises no CheckpointError, and a line for each one before it.

    Tries each once. The result is None if all are unfinished. Raises CheckpointError if some are not and none can be read;
    `faults` are those that were found before.
    """
    skipped: list[CheckpointError] = []
    found, instead = None, "no other checkpoint is left"
    for step in steps:
        try:
            found, instead = take(step), f"loaded instead: {store.url(folder_name(step))}"
            break
        except CheckpointError as error:
            skipped.append(error)
    unreadable = [fault for fault in [*faults, *skipped] if not isinstance(fault, Unfinished)]
    if found is None and unreadable:
        raise _none_readable(store, unreadable)
    return found, [f"checkpoint skipped: {fault}; {instead}" for fault in skipped]


def _none_readable(store: Store, faults: Sequence[CheckpointError]) -> CheckpointError:
    shown = [str(fault) for fault in faults[:SHOWN]] + [f"and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)
    return CheckpointError(
        f"{store.url('')}: holds checkpoints, but none that can be used ({'; '.join(shown)}); nothing was changed: put back a "
        "copy of one, run the version of this program that wrote them, or give the run another name (name=...) to start at step 0"
    )


def _manifest(store: Store, name: str, held: Iterable[str]) -> tuple[str, dict[str, Entry]]:
    """As `read_manifest`, but a folder without a manifest that holds files of other programs is not taken for unfinished."""
    try:
        return read_manifest(store, name)
    except Unfinished as error:
        if odd := foreign(held):
            raise CheckpointError(f"{store.url(name)}: holds {', '.join(odd)} and no {MANIFEST}; {OTHER_VERSION}") from error
        raise


def _dispensable(store: Store, found: Survey, keep: int, stored: str | None) -> list[int]:
    newest = next((step for step in found.records if folder_name(step) == stored or _verifies(store, folder_name(step))), None)
    if newest is None:
        return []
    good = {step: progress for step, progress in found.records.items() if step <= newest}
    scored = max((step for step, progress in good.items() if miou(progress) is not None), default=-1)
    kept = {
        *list(good)[:keep],
        *ranked(good)[:1],
        *(step for step, progress in good.items() if step > scored and progress.get("score_pending", True)),
        *(step for step, held in found.held.items() if KEPT in held or foreign(held)),
        *found.faults,
    }
    return [step for step in found.held if step < newest and step not in kept]


def _verifies(store: Store, name: str) -> bool:
    try:
        verify(store, name)
    except CheckpointError as error:
        logger.warning("checkpoint skipped: %s", error)
        return False
    return True


def _delete(store: Store, name: str, files: Sequence[str]) -> None:
    """Deletes the files, each one by its name, and the folder if nothing else is in it."""
    try:
        # The manifest first, so that a half-deleted folder is never mistaken for a whole checkpoint.
        for key in [f"{name}/{file}" for file in sorted(files, key=lambda file: file != MANIFEST)]:
            store.delete(key)
            if store.exists(key):  # some stores report success and delete nothing
                raise StorageError(f"{store.url(key)}: was deleted without an error and is still there")
        if not store.list(name):
            store.delete(name)
    except StorageError as error:
        logger.warning("old checkpoint not deleted: %s", error)
