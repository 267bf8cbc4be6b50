"""What a training process knows about the others: its rank, their number, sums over all of them, its share of threads."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ccnet.shapes import Num


def rank() -> int:
    """Number of this process among the workers, from 0; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of workers in the default process group; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def num_threads(local_workers: int) -> int:
    """Number of torch threads for each of `local_workers` processes that share this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity
    return max(1, cores // local_workers)


class _SumOverWorkers(torch.autograd.Function):
    """y = sum of x over the workers. Every worker's loss depends on every worker's x, so backward sums the gradients too.

    torch.distributed.nn.functional.all_reduce does the same, but is deprecated in torch 2.13.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def sum_over_workers(x: Num[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
    """The sum of `x` over all workers, differentiable: the gradient is that of the sum of the workers' losses.

    One collective in each direction, which every worker must reach equally often. Outside a process group it is the identity.
    """
    if not dist.is_initialized():
        return x
    total: Tensor = _SumOverWorkers.apply(x)  # type: ignore[no-untyped-call]
    return total
