"""Checkpoints: each one is a folder with the state of a training run.

A folder `step-000040` holds `model.safetensors`, `optimizer.safetensors`, `average.safetensors` if the weights are averaged,
`progress.json` and `manifest.json` (name -> sha256 and size of the other files). `score.json` is added if the checkpoint was
stored before it was validated, and `kept.json` if MLflow refers to it. No file is pickled. A checkpoint is loaded only if every
byte matches its manifest. retention.py chooses which checkpoint of a run is loaded and which ones are kept.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from pipeline.checkpoints.files import (
    AVERAGE,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    PROGRESS,
    Entry,
    in_safetensors,
    mark_kept,
    read_manifest,
    read_verified,
    seal,
    upload,
    verify,
    write_score,
)
from pipeline.checkpoints.retention import (
    best,
    first_whole,
    folder_name,
    latest,
    latest_step,
    miou,
    newest_progress,
    prune,
    ranked,
    read_progress,
    survey,
    unscored,
)
from pipeline.errors import CheckpointError
from pipeline.storage.store import Store

__all__ = ["AVERAGE", "MANIFEST", "MODEL", "OPTIMIZER", "PROGRESS", "Checkpoint", "CheckpointError", "State", "best",
           "folder_name", "latest", "latest_step", "load", "load_best", "mark_kept", "miou", "newest_progress", "prune",
           "restore", "save", "snapshot", "unscored", "upload", "verify", "write_score"]  # fmt: skip
Tensors = dict[str, torch.Tensor]
logger = logging.getLogger(__name__)


class State(NamedTuple):
    """The state that training changes, copied to CPU tensors."""

    model: Tensors
    optimizer: Tensors
    """Momentum buffers by parameter name."""
    average: Tensors
    """Averaged weights; empty if the weights are not averaged."""


class Checkpoint(NamedTuple):
    """A verified checkpoint in memory."""

    url: str
    sha256: str
    """Checksum of the manifest, hence of the whole checkpoint."""
    progress: dict[str, Any]
    """`step` (optimizer steps done), `model` (how to build the network), `metrics` and everything else that the run recorded."""
    model: Tensors
    optimizer: Tensors
    average: Tensors

    @property
    def step(self) -> int:
        return int(self.progress["step"])

    @property
    def weights(self) -> Tensors:
        """The weights for validation and prediction: the average if there is one, else the model."""
        return self.average or self.model


def snapshot(net: torch.nn.Module, optimizer: torch.optim.Optimizer, average: torch.nn.Module | None = None) -> State:
    """Copies the state to CPU memory, so that training can continue while the copy is saved."""
    momentum = {name: optimizer.state[p].get("momentum_buffer") for name, p in net.named_parameters() if p in optimizer.state}
    return State(
        model=_copied(net.state_dict()),
        optimizer=_copied({name: buffer for name, buffer in momentum.items() if buffer is not None}),
        average={} if average is None else _copied(average.state_dict()),
    )


def save(folder: Path, state: State, progress: dict[str, Any]) -> None:
    """Writes the files into a local folder, the manifest last. The tensors are not copied in memory."""
    tensors = {MODEL: state.model, OPTIMIZER: state.optimizer} | ({AVERAGE: state.average} if state.average else {})
    for file, named in tensors.items():
        safetensors.torch.save_file(named, folder / file)
    (folder / PROGRESS).write_text(json.dumps(progress, indent=1))
    seal(folder, [*tensors, PROGRESS])


def load(store: Store, name: str, *, with_optimizer: bool = True) -> Checkpoint:
    """Reads and verifies `<store>/<name>`. Without the optimizer, reads only the weights: the average or else the model.

    Raises CheckpointError, which names the file that is missing or differs.
    """
    sha256, entries = read_manifest(store, name)
    wanted = set(entries) if with_optimizer else {AVERAGE if AVERAGE in entries else MODEL}
    model, optimizer, average = (
        _tensors(store, f"{name}/{file}", entries[file]) if file in wanted else {} for file in (MODEL, OPTIMIZER, AVERAGE)
    )
    return Checkpoint(store.url(name), sha256, read_progress(store, name, sha256, entries), model, optimizer, average)


def load_best(store: Store) -> Checkpoint | None:
    """The checkpoint with the highest mIoU that verifies, without the optimizer; None if there is none.

    Raises CheckpointError if there are checkpoints that cannot be read, and none with a score that can be.
    """
    found = survey(store)
    faults = list(found.faults.values())
    best, skipped = first_whole(
        store, ranked(found.records), lambda step: load(store, folder_name(step), with_optimizer=False), faults
    )
    for line in skipped:
        logger.warning("%s", line)
    return best


def restore(
    checkpoint: Checkpoint,
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: torch.nn.Module | None = None,
) -> None:
    """Loads the state into the given objects. A network without optimizer and average gets `weights`.

    Raises CheckpointError if an average is given but the checkpoint has none.
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
            # In the parameter's memory format: the optimizer's step is slower if the formats differ.
            buffer = torch.empty_like(parameter, requires_grad=False).copy_(checkpoint.optimizer[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def _copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    # safetensors writes contiguous tensors. This copy makes them contiguous; `contiguous()` afterwards would copy twice.
    return {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _tensors(store: Store, key: str, entry: Entry) -> Tensors:
    with in_safetensors(store.url(key)):
        return safetensors.torch.load(read_verified(store, key, entry))
