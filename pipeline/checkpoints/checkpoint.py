"""Checkpoints: the state of a training in one folder each.

A checkpoint is a folder `step-000040` of `model.safetensors`, `optimizer.safetensors`, `average.safetensors` where the weights
are averaged, `progress.json` and `manifest.json` (name -> sha256 and size of the others); `score.json` is added to one that
was stored before it was validated. Nothing in it is pickled, and none that does not match its manifest in every byte is ever
loaded. Which of a run's is taken, and which ones are kept, is in retention.py.
"""

import json
from collections.abc import Mapping
from functools import partial
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
    latest_step,
    miou,
    newest_progress,
    prune,
    ranked,
    read_progress,
    recorded,
    unscored,
)
from pipeline.errors import CheckpointError
from pipeline.storage.store import Store

__all__ = ["AVERAGE", "MANIFEST", "MODEL", "OPTIMIZER", "PROGRESS", "Checkpoint", "CheckpointError", "State", "best",
           "folder_name", "latest_step", "load", "load_best", "miou", "newest_progress", "prune", "restore", "save",
           "snapshot", "unscored", "upload", "verify", "write_score"]  # fmt: skip
Tensors = dict[str, torch.Tensor]


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
    return Checkpoint(store.url(name), sha256, read_progress(store, name, sha256, entries), model, optimizer, average)


def load_best(store: Store) -> Checkpoint | None:
    """The checkpoint with the highest mIoU that verifies, for predictions; None when there is none."""
    return first_whole(store, ranked(recorded(store)), partial(load, store, with_optimizer=False))


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


def _copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    # Files hold contiguous tensors; made so in the same copy, which `contiguous` afterwards would double.
    return {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _tensors(store: Store, key: str, entry: Entry) -> Tensors:
    with in_safetensors(store.url(key)):
        return safetensors.torch.load(read_verified(store, key, entry))
