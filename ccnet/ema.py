"""The exponential moving average of a network's weights."""

import copy
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool
from torch import nn

Net = TypeVar("Net", bound=nn.Module, covariant=True)


class Average(Generic[Net]):
    """average <- d average + (1 - d) weights after step n, counted from 0, with d = min(decay, (1 + n) / (10 + n)).

    It starts as a copy of the network, which the smaller d of the first steps forgets (as tf.train.ExponentialMovingAverage with
    num_updates). Averaged are parameters and floating-point buffers, integer buffers are copied. `net` is the average as a
    network, in evaluation mode and without gradients; its state dict and the number of the step are the whole state.

    torch.optim.swa_utils.AveragedModel has one decay, replaces the average by the weights at its first update, and keeps a count
    of its own that the caller's step number would have to be set from.
    """

    def __init__(self, net: Net, decay: float) -> None:
        """`net` is the bare module, not compiled or wrapped. ValueError unless 0 < decay < 1."""
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay = {decay}: must be above 0 and below 1 (0.999 averages over about 1,000 steps)")
        self.decay = decay
        self.net: Net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, n: int, applied: Bool[torch.Tensor, ""] | None = None) -> None:
        """Take in the weights of `net` after step `n`, unless `applied` is false: the step was left out, and all stays.

        `net` may be compiled, and wrapped in DistributedDataParallel. The host does not wait for the device.
        """
        share = 1 - min(self.decay, (1 + n) / (10 + n))
        # In their order and not by their names, to which wrappers add.
        mine, theirs = ([*each.parameters(), *each.buffers()] for each in (self.net, net))
        # By dtype, because lists of one dtype take a few kernels on a GPU instead of one for each tensor.
        for dtype in {tensor.dtype for tensor in mine}:
            own, other = ([tensor for tensor in each if tensor.dtype == dtype] for each in (mine, theirs))
            if not dtype.is_floating_point:
                torch._foreach_copy_(own, other)
                continue
            steps = torch._foreach_sub(other, own)
            torch._foreach_mul_(steps, share if applied is None else (share * applied.double()).to(dtype))
            torch._foreach_add_(own, steps)
