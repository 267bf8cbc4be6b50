"""Checkpoints that count only when their manifest, written last, matches every byte (law 7).

A checkpoint is a folder `step-000040` of `model.safetensors`, `optimizer.safetensors`, `progress.json` and `manifest.json`
(name -> sha256 and size of the others). Nothing in it is pickled.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from pipeline.storage import Store

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER, PROGRESS, MANIFEST = "model.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, torn or corrupt; the message names the file."""


class Checkpoint(NamedTuple):
    """A verified checkpoint in memory."""

    url: str
    sha256: str
    """Checksum of the manifest, hence of the whole checkpoint."""
    progress: dict[str, Any]
    """`step` (optimizer steps done), `model` (how to build the network), `metrics` and what else the run recorded."""
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @property
    def step(self) -> int:
        return int(self.progress["step"])


def folder_name(step: int) -> str:
    """Folder of the checkpoint after `step` optimizer steps."""
    return f"step-{step:06d}"


def save(folder: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Writes the files into a local folder, the manifest last."""
    files = {
        MODEL: safetensors.torch.save({k: v.contiguous() for k, v in net.state_dict().items()}),
        OPTIMIZER: safetensors.torch.save(_momentum(net, optimizer)),
        PROGRESS: json.dumps(progress, indent=1).encode(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1))


def upload(folder: Path, store: Store, name: str) -> None:
    """Copies a saved folder to `<store>/<name>`: files first, each read back by size, the manifest last.

    Raises CheckpointError when the store does not hold what was written: some answer with success and keep nothing.
    """
    for path in sorted(folder.iterdir(), key=lambda p: p.name == MANIFEST):
        key, data = f"{name}/{path.name}", path.read_bytes()
        store.write(key, data)
        if fault := store.shortfall(key, data):
            raise CheckpointError(fault)


def load(store: Store, name: str, *, with_optimizer: bool = True) -> Checkpoint:
    """Reads and verifies `<store>/<name>`. Raises CheckpointError naming the file that is missing or differs."""
    manifest = _read(store, f"{name}/{MANIFEST}")
    files = {}
    for file, entry in _json(store, f"{name}/{MANIFEST}", manifest).items():
        if file == OPTIMIZER and not with_optimizer:
            continue
        data = _read(store, f"{name}/{file}")
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{store.url(f'{name}/{file}')}: {len(data)} bytes do not match the manifest's sha256")
        files[file] = data
    return Checkpoint(
        url=store.url(name),
        sha256=hashlib.sha256(manifest).hexdigest(),
        progress=json.loads(files[PROGRESS]),
        model=safetensors.torch.load(files[MODEL]),
        optimizer=safetensors.torch.load(files[OPTIMIZER]) if with_optimizer else {},
    )


def steps(store: Store) -> list[int]:
    """Steps of all checkpoints under the store whose manifest exists, oldest first."""
    folders = (key.rsplit("/", 2)[-2] for key in store.list("") if key.endswith(f"/{MANIFEST}"))
    return sorted(int(folder.removeprefix("step-")) for folder in folders if folder.startswith("step-"))


def latest(store: Store) -> Checkpoint | None:
    """The newest checkpoint that verifies; torn ones are passed over with a warning. None when there is none."""
    for step in reversed(steps(store)):
        try:
            return load(store, folder_name(step))
        except CheckpointError as error:
            logger.warning("checkpoint passed over: %s", error)
    return None


def newest_progress(store: Store) -> dict[str, Any] | None:
    """What the newest checkpoint recorded, its weights not verified. None when there is none."""
    recorded = _recorded(store)
    return recorded[-1][1] if recorded else None


def best(store: Store) -> str | None:
    """Folder name of the checkpoint with the highest mIoU, the later one of equals. None when there is none."""
    scored = [(progress["metrics"]["miou"], step) for step, progress in _recorded(store)]
    return folder_name(max(scored)[1]) if scored else None


def restore(checkpoint: Checkpoint, net: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Puts the weights, and the optimizer's momentum when given, back."""
    net.load_state_dict(checkpoint.model)
    if optimizer is None:
        return
    for name, parameter in net.named_parameters():
        if name in checkpoint.optimizer:
            optimizer.state[parameter]["momentum_buffer"] = checkpoint.optimizer[name].to(parameter.device)


def _momentum(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    states = {name: optimizer.state[p].get("momentum_buffer") for name, p in net.named_parameters() if p in optimizer.state}
    return {name: buffer.contiguous() for name, buffer in states.items() if buffer is not None}


def _recorded(store: Store) -> list[tuple[int, dict[str, Any]]]:
    """(step, progress) of every checkpoint, oldest first; those without a readable one are passed over with a warning."""
    found = []
    for step in steps(store):
        key = f"{folder_name(step)}/{PROGRESS}"
        try:
            found.append((step, _json(store, key, _read(store, key))))
        except CheckpointError as error:
            logger.warning("checkpoint passed over: %s", error)
    return found


def _json(store: Store, key: str, data: bytes) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{store.url(key)}: not valid JSON ({len(data)} bytes)") from error
    return tree


def _read(store: Store, key: str) -> bytes:
    try:
        return store.read(key)
    except FileNotFoundError as error:
        raise CheckpointError(f"{store.url(key)}: missing") from error
