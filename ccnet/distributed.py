"""What one of several training processes knows of the others: rank, number, sums over all of them, threads."""

import os
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Num
from torch import Tensor


def rank() -> int:
    """Number of this process among the workers, from 0; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of workers in the default process group; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def num_threads(local_workers: int) -> int:
    """Torch threads of one of `local_workers` processes that share this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity
    return max(1, cores // local_workers)


class _SumOverWorkers(torch.autograd.Function):
    """y = sum of x over the workers. Every worker's loss depends on every x, hence the sum in backward as well.

    torch.distributed.nn.functional.all_reduce does the same and is deprecated in torch 2.13.
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
    """The sum of `x` over all workers, differentiable: the gradient is that of the workers' losses added up.

    One collective each way, which every worker must reach equally often; alone it is the identity.
    """
    if not dist.is_initialized():
        return x
    total: Tensor = _SumOverWorkers.apply(x)  # type: ignore[no-untyped-call]
    return total
