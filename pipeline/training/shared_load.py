"""Reads the store once for all workers of a run: rank 0 reads, the others receive."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from ccnet import distributed
from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config.config import Config
from pipeline.errors import CheckpointError, StorageError
from pipeline.model.pretrained import Pretrained, read_pretrained
from pipeline.storage.store import Store

T = TypeVar("T")
N = TypeVar("N", Checkpoint, Pretrained)


def from_rank_zero(read: Callable[[], T], device: torch.device) -> T:
    """The result of `read()`, which only rank 0 calls. Every worker must call this; `device` is the worker's own.

    If it fails, rank 0 raises its error and the others a StorageError that names it: none of them waits for ever.
    """
    if distributed.world_size() == 1:
        return read()
    sent: list[Any] = [None, ""]
    failure: Exception | None = None
    if distributed.rank() == 0:
        try:
            sent = [read(), ""]
        except Exception as error:
            failure, sent = error, [None, f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(sent, src=0, device=device)
    if failure:
        raise failure
    if sent[1]:
        raise StorageError(f"worker 0 could not read for all workers: {sent[1]}")
    result: T = sent[0]
    return result


def load_once(store: Store, step: int, device: torch.device) -> Checkpoint:
    """The checkpoint at whose step the feed starts, with the same bits on every worker, on the CPU.

    Raises StorageError if it does not load, so that the next attempt checks again which checkpoints verify.
    """

    def load() -> Checkpoint:
        try:
            return checkpoint.load(store, checkpoint.folder_name(step))
        except CheckpointError as error:
            raise StorageError(f"{error}; it verified when this attempt began") from error

    return _once(load, ("model", "optimizer", "average"), device)


def pretrained_once(config: Config, device: torch.device) -> Pretrained | None:
    """The weights of `model.weights`, with the same bits on every worker, on the CPU; None when the setting is empty.

    Raises ConfigError and StorageError as `read_pretrained`.
    """
    if config.model.weights is None:
        return None
    return _once(lambda: cast(Pretrained, read_pretrained(config)), ("state",), device)


def _once(read: Callable[[], N], parts: tuple[str, ...], device: torch.device) -> N:
    """The tuple that `read()` gives on rank 0, on every worker. `parts` names its dictionaries of tensors."""
    if distributed.world_size() == 1:
        return read()
    whole: list[N] = []

    def outline() -> N:
        whole.append(read())
        empty: dict[str, Any] = {part: _on_meta(getattr(whole[0], part)) for part in parts}
        return whole[0]._replace(**empty)

    found = from_rank_zero(outline, device)
    mine = whole[0] if whole else found
    filled: dict[str, Any] = {part: _broadcast(getattr(mine, part), device) for part in parts}
    return found._replace(**filled)


def _on_meta(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names, shapes and types without the values."""
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}


def _broadcast(tensors: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Rank 0's tensors. One at a time is on the device: NCCL sends from there, and it has little room besides the network."""
    received = {}
    for name, tensor in tensors.items():
        moved = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device).contiguous()
        dist.broadcast(moved, src=0)
        received[name] = moved.to("cpu") if tensor.is_meta else tensor
    return received
