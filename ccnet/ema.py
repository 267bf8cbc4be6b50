"""The exponential moving average of a network's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from ccnet.shapes import Bool

Net = TypeVar("Net", bound=nn.Module, covariant=True)


class Average(Generic[Net]):
    """average <- d average + (1 - d) weights after step n, counted from 0, with d = min(decay, (1 + n) / (10 + n)).

    The average starts as a copy of the network. The smaller d of the first steps makes it forget this start (as in
    tf.train.ExponentialMovingAverage with num_updates). Parameters and floating-point buffers are averaged, integer buffers are
    copied. `net` is the average as a network, in evaluation mode and without gradients. Its state dict and the number of the
    step are the whole state.

    torch.optim.swa_utils.AveragedModel is not used, because an update here can depend on `applied`, a flag on the device.
    """

    def __init__(self, net: Net, decay: float) -> None:
        """`net` is the bare module, neither compiled nor wrapped. ValueError unless 0 < decay < 1."""
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay = {decay}: must be above 0 and below 1 (0.999 averages over about 1,000 steps)")
        self.decay = decay
        self.net: Net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, n: int, applied: Bool[torch.Tensor, ""] | None = None) -> None:
        """Add the weights of `net` after step `n` to the average, unless `applied` is false because the step was skipped.

        `net` may be compiled and wrapped in DistributedDataParallel. The host does not wait for the device.
        """
        share = 1 - min(self.decay, (1 + n) / (10 + n))
        # Tensors are matched by order and not by name, because wrappers add prefixes to the names.
        mine, theirs = ([*each.parameters(), *each.buffers()] for each in (self.net, net))
        # Tensors are grouped by dtype, because a list of one dtype takes a few kernels on a GPU instead of one per tensor.
        for dtype in {tensor.dtype for tensor in mine}:
            own, other = ([tensor for tensor in each if tensor.dtype == dtype] for each in (mine, theirs))
            if not dtype.is_floating_point:
                torch._foreach_copy_(own, other)
                continue
            steps = torch._foreach_sub(other, own)
            torch._foreach_mul_(steps, share if applied is None else (share * applied.double()).to(dtype))
            torch._foreach_add_(own, steps)
