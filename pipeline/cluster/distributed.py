"""What a training worker knows of its peers: rank, world size, its rows of the global batch, threads, sums over all workers."""

import os

import torch
import torch.distributed as dist

from pipeline.loading.sampler import share


def rank() -> int:
    """Rank of this process; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of training processes; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rows(global_batch: int) -> tuple[int, int]:
    """(first row, all rows): this worker holds the rows of the global batch from the first on."""
    return share(global_batch, rank(), world_size())[0], global_batch


def sum_over_workers(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all workers, on every worker. Every rank must call it equally often."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def num_threads(local_workers: int) -> int:
    """Torch threads of one of `local_workers` processes that share this machine."""
    return max(1, len(os.sched_getaffinity(0)) // local_workers)
