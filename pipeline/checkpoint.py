"""Checkpoints: the state of a training in one folder each, which of a run's is taken, and which ones are kept.

A checkpoint is a folder `step-000040` of `model.safetensors`, `optimizer.safetensors`, `average.safetensors` where the weights
are averaged, `progress.json` and `manifest.json` (name -> sha256 and size of the others); `score.json` is added to one that
was stored before it was validated. Nothing in it is pickled, and none that does not match its manifest in every byte is ever
loaded.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from pipeline.checkpoint_files import (
    AVERAGE,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    PROGRESS,
    CheckpointError,
    Entry,
    parse,
    read_manifest,
    read_verified,
    seal,
    upload,
    verify,
    with_score,
    write_score,
)
from pipeline.storage import StorageError, Store

__all__ = ["AVERAGE", "MANIFEST", "MODEL", "OPTIMIZER", "PROGRESS", "Checkpoint", "CheckpointError", "State", "best",
           "folder_name", "latest", "load", "load_best", "miou", "newest_progress", "prune", "restore", "save", "snapshot",
           "unscored", "upload", "verify", "write_score"]  # fmt: skip
Tensors = dict[str, torch.Tensor]
logger = logging.getLogger(__name__)


class State(NamedTuple):
    """What training changes, as CPU tensors that share no memory with it."""

    model: Tensors
    optimizer: Tensors
    """Momentum by the name of its parameter."""
    average: Tensors
    """Empty when the weights are not averaged."""


class Checkpoint(NamedTuple):
    """A verified checkpoint in memory."""

    url: str
    sha256: str
    """Checksum of the manifest, hence of the whole checkpoint."""
    progress: dict[str, Any]
    """`step` (optimizer steps done), `model` (how to build the network), `metrics` and what else the run recorded."""
    model: Tensors
    optimizer: Tensors
    average: Tensors

    @property
    def step(self) -> int:
        return int(self.progress["step"])

    @property
    def weights(self) -> Tensors:
        """What was scored and what predicts: the average where there is one, else the model."""
        return self.average or self.model


def folder_name(step: int) -> str:
    """Folder of the checkpoint after `step` optimizer steps."""
    return f"step-{step:06d}"


def snapshot(net: torch.nn.Module, optimizer: torch.optim.Optimizer, average: torch.nn.Module | None = None) -> State:
    """Copies the state to CPU memory at once, so that training may go on while the copy is saved."""
    momentum = {name: optimizer.state[p].get("momentum_buffer") for name, p in net.named_parameters() if p in optimizer.state}
    return State(
        model=_copied(net.state_dict()),
        optimizer=_copied({name: buffer for name, buffer in momentum.items() if buffer is not None}),
        average={} if average is None else _copied(average.state_dict()),
    )


def save(folder: Path, state: State, progress: dict[str, Any]) -> None:
    """Writes the files into a local folder, the manifest last; the tensors go to disk without another copy of them."""
    tensors = {MODEL: state.model, OPTIMIZER: state.optimizer} | ({AVERAGE: state.average} if state.average else {})
    for file, named in tensors.items():
        safetensors.torch.save_file(named, folder / file)
    (folder / PROGRESS).write_text(json.dumps(progress, indent=1))
    seal(folder, [*tensors, PROGRESS])


def load(store: Store, name: str, *, with_optimizer: bool = True) -> Checkpoint:
    """Reads and verifies `<store>/<name>`; without the optimizer only what predictions need, the average or else the model.

    Raises CheckpointError naming the file that is missing or differs.
    """
    sha256, entries = read_manifest(store, name)
    wanted = set(entries) if with_optimizer else {AVERAGE if AVERAGE in entries else MODEL}
    model, optimizer, average = (
        _tensors(store, f"{name}/{file}", entries[file]) if file in wanted else {} for file in (MODEL, OPTIMIZER, AVERAGE)
    )
    return Checkpoint(store.url(name), sha256, _progress(store, name, sha256, entries), model, optimizer, average)


def latest(store: Store) -> Checkpoint | None:
    """The newest checkpoint that verifies, None when there is none; torn ones are passed over with a warning."""
    return _first_whole(store, _folders(store), with_optimizer=True)


def load_best(store: Store) -> Checkpoint | None:
    """The checkpoint with the highest mIoU that verifies, for predictions; None when there is none."""
    return _first_whole(store, _ranked(_recorded(store)), with_optimizer=False)


def newest_progress(store: Store) -> dict[str, Any] | None:
    """What the newest checkpoint recorded, its weights not verified. None when there is none."""
    return next((progress for _, progress in _recorded(store)), None)


def best(store: Store) -> str | None:
    """Folder name of the checkpoint with the highest mIoU, the later one of equals. None when none has a score."""
    return next(map(folder_name, _ranked(_recorded(store))), None)


def miou(progress: Mapping[str, Any]) -> float | None:
    """The mIoU of a checkpoint that was validated."""
    found: float | None = progress.get("metrics", {}).get("miou")
    return found


def unscored(store: Store) -> list[int]:
    """Steps of the checkpoints that were not validated, the oldest first."""
    return sorted(step for step, progress in _recorded(store) if miou(progress) is None)


def restore(
    checkpoint: Checkpoint,
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: torch.nn.Module | None = None,
) -> None:
    """Puts the state of training back into what is given; the network alone gets `weights`.

    Raises CheckpointError when an average is given and the checkpoint has none.
    """
    if optimizer is None and average is None:
        net.load_state_dict(checkpoint.weights)
        return
    if average is not None:
        if not checkpoint.average:
            raise CheckpointError(f"{checkpoint.url}: has no average of the weights: leave out train.ema_decay")
        average.load_state_dict(checkpoint.average)
    net.load_state_dict(checkpoint.model)
    if optimizer is None:
        return
    optimizer.state.clear()
    for name, parameter in net.named_parameters():
        if name in checkpoint.optimizer:
            # In the parameter's memory format: over tensors of several formats the optimizer's step is slower.
            buffer = torch.empty_like(parameter, requires_grad=False).copy_(checkpoint.optimizer[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer


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


def _copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    # Files hold contiguous tensors; made so in the same copy, which `contiguous` afterwards would double.
    return {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _tensors(store: Store, key: str, entry: Entry) -> Tensors:
    data = read_verified(store, key, entry)
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{store.url(key)}: not in the safetensors format ({error})") from error


def _progress(store: Store, name: str, sha256: str, entries: Mapping[str, Entry]) -> dict[str, Any]:
    key = f"{name}/{PROGRESS}"
    progress = parse(store.url(key), read_verified(store, key, entries[PROGRESS]))
    if not isinstance(progress.get("step"), int):
        raise CheckpointError(f"{store.url(key)}: has no `step`")
    score = progress.get("score") or {}  # alone had these, before a checkpoint could be without one
    progress = {key: score[key] for key in ("class_names", "protocol") if key in score} | progress
    return with_score(store, name, sha256, progress)


def _folders(store: Store) -> dict[int, dict[str, int]]:
    """Step -> file -> size, of all checkpoints under the store, whole or torn, newest first."""
    found: dict[int, dict[str, int]] = {}
    for key, size, _ in store.listing():
        folder, _, file = key.partition("/")
        step = folder.removeprefix("step-")
        if file and step.isdecimal() and folder == folder_name(int(step)):
            found.setdefault(int(step), {})[file] = size
    return dict(sorted(found.items(), reverse=True))


def _recorded(store: Store) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, progress) of every checkpoint, newest first: the record verified, of the other files only that they are there in
    full size. Torn ones are passed over with a warning."""
    for step, held in _folders(store).items():
        name = folder_name(step)
        try:
            sha256, entries = read_manifest(store, name)
            for file, entry in entries.items():
                if held.get(file) != entry.bytes:
                    url, size = store.url(f"{name}/{file}"), held.get(file, "no")
                    raise CheckpointError(f"{url}: {size} bytes, but the manifest lists {entry.bytes}")
            progress = _progress(store, name, sha256, entries)
        except CheckpointError as error:
            logger.warning("checkpoint passed over: %s", error)
        else:
            yield step, progress


def _ranked(records: Iterable[tuple[int, dict[str, Any]]]) -> list[int]:
    """Steps by mIoU, the best first, the later one of equals; those without a score are left out."""
    scores = [(miou(progress), step) for step, progress in records]
    return [step for _, step in sorted((s for s in scores if s[0] is not None and math.isfinite(s[0])), reverse=True)]


def _first_whole(store: Store, steps: Iterable[int], *, with_optimizer: bool) -> Checkpoint | None:
    """The first of these checkpoints that verifies; each is loaded once at most."""
    torn, found = [], None
    for step in steps:
        try:
            found = load(store, folder_name(step), with_optimizer=with_optimizer)
            break
        except CheckpointError as error:
            torn.append(error)
    instead = f"taken instead: {found.url}" if found else "no other one is left"
    for fault in torn:
        logger.warning("checkpoint passed over: %s; %s", fault, instead)
    return found


def _dispensable(store: Store, keep: int, stored: str | None) -> list[str]:
    whole = dict(_recorded(store))
    newest = next((step for step in whole if folder_name(step) == stored or _verifies(store, folder_name(step))), None)
    if newest is None:
        return []
    good = {step: progress for step, progress in whole.items() if step <= newest}
    scored = max((step for step, progress in good.items() if miou(progress) is not None), default=-1)
    kept = {*list(good)[:keep], *_ranked(good.items())[:1], *(step for step in good if step > scored)}
    return [folder_name(step) for step in _folders(store) if step < newest and step not in kept]


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
