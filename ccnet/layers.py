"""Batch norm and dropout whose results do not depend on the number of workers that share the global batch; frozen batch norm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ccnet.distributed import rank, world_size
from ccnet.shapes import Float


class _GlobalBatchNorm(torch.autograd.Function):
    """y = weight (x - mean) / sqrt(var + eps) + bias with mean and var of the global batch; backward differentiates them too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, num_values: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), num_values)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std, num_values = ctx.saved_tensors
        grad = grads[0].to(mean.dtype)
        shape = (1, -1, 1, 1)
        centred = x - mean.view(shape)
        local = torch.stack([grad.sum((0, 2, 3)), (grad * centred).sum((0, 2, 3))])  # [2, C]
        total = local.clone()
        dist.all_reduce(total)
        mean_grad, mean_grad_centred = total / num_values
        grad_x = grad - mean_grad.view(shape) - centred * (inverse_std.square() * mean_grad_centred).view(shape)
        grad_x = grad_x * (weight * inverse_std).view(shape)
        # Parameter gradients stay local: DistributedDataParallel adds them up with all the others.
        grad_weight, grad_bias = local[1] * inverse_std, local[0]
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None, None, None


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the global batch, on the CPU (torch's SyncBatchNorm refuses CPUs). Same state dict as BatchNorm2d.

    In training with more than one worker, mean and variance are those of the batches of all workers together, in forward and
    backward, with one collective in each direction. Every worker must reach it equally often. Otherwise it is BatchNorm2d.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise; in training also update the running statistics. ValueError for a single value per channel."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        mean, var, num_values = self._global_statistics(input)
        if num_values.item() < 2:
            raise ValueError(
                f"batch norm in training needs at least 2 values per channel in the global batch, got {tuple(input.shape)}"
            )
        self._update_running(mean, var * (num_values / (num_values - 1)))
        normalised: Tensor = _GlobalBatchNorm.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, mean, var, num_values, self.eps
        )
        return normalised

    @torch.no_grad()
    def _global_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [C], biased variance [C] and number of values [] per channel over all workers, float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # Two passes: as stable as torch.var_mean, which takes several times longer over these axes on a CPU.
        mean = wide.mean((0, 2, 3))  # [C]
        var = (wide - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))  # [C]
        own = torch.cat([mean, var, mean.new_tensor([x.numel() / x.shape[1]])])  # [2C + 1]
        gathered = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(gathered, own)
        # In rank order, so that every worker gets the same bits.
        every = torch.stack(gathered).double()  # [N, 2C + 1]
        channels = x.shape[1]
        means, variances, counts = every[:, :channels], every[:, channels:-1], every[:, -1:]
        num_values = counts.sum()
        global_mean = (counts * means).sum(0) / num_values  # [C]
        # Chan, Golub, LeVeque (1983): variance within plus between workers; E[x^2] - E[x]^2 would cancel.
        global_var = (counts * (variances + (means - global_mean).square())).sum(0) / num_values  # [C]
        return global_mean.to(own.dtype), global_var.to(own.dtype), num_values

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_var: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), self.momentum)


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm2d whose statistics, scale and shift never change, even in training. Same state dict as BatchNorm2d.

    y = weight (x - running_mean) / sqrt(running_var + eps) + bias. Not a subclass of BatchNorm2d, because torch's conversion to
    SyncBatchNorm would replace it.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_features), requires_grad=False)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise by the running statistics."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def synchronise_batch_norm(net: nn.Module, device: torch.device | str) -> nn.Module:
    """Replace every BatchNorm2d of `net`, in place, by one over the global batch, and return `net`.

    `device` is where the net will train: torch's SyncBatchNorm on GPUs, SyncedBatchNorm2d on the CPU. Parameters and buffers are
    reused, so an optimizer built before stays valid. Only for BatchNorm2d as `ccnet` uses it: affine, with a momentum and running
    statistics; on the CPU, ValueError for any other.
    """
    if torch.device(device).type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        return converted
    return _swap(net, lambda child: type(child) is nn.BatchNorm2d, _synced)


def freeze_batch_norm(net: nn.Module) -> nn.Module:
    """Replace every batch norm of `net`, in place, by a FrozenBatchNorm2d with its parameters and buffers, and return `net`.

    For fine-tuning. This also replaces the norms that `synchronise_batch_norm` made; that function in turn keeps frozen norms.
    Call it before the optimizer is built, which must not get the frozen parameters. ValueError for a norm that is not affine or
    has no running statistics.
    """
    return _swap(net, lambda child: isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm), _frozen)


def _swap(net: nn.Module, found: Callable[[nn.Module], bool], swapped: Callable[[Any], nn.Module]) -> nn.Module:
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if found(child):
                setattr(parent, name, swapped(child))
    return net


def _synced(norm: nn.BatchNorm2d) -> nn.Module:
    if norm.momentum is None or not norm.affine or not norm.track_running_stats:
        raise ValueError(f"{norm}: only affine batch norm with a momentum and running statistics can be synchronised on the CPU")
    return _with_state_of(norm, SyncedBatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum))


def _frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> nn.Module:
    if not norm.affine or not norm.track_running_stats:
        raise ValueError(f"{norm}: only affine batch norm with running statistics can be frozen")
    return _with_state_of(norm, FrozenBatchNorm2d(norm.num_features, eps=norm.eps)).requires_grad_(False)


def _with_state_of(norm: nn.Module, other: nn.Module) -> nn.Module:
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(other, name, getattr(norm, name))
    return other.train(norm.training)


_global_rows: tuple[Tensor, int] | None = None


@contextmanager
def global_rows(first: int, total: int) -> Iterator[None]:
    """Inside, SampleDropout2d takes the B rows of a batch as rows [first, first + B) of a global batch of `total`.

    Outside, it takes all workers to hold equally many rows, in the order of their ranks. The threads of a process share this.
    """
    global _global_rows
    # `first` as a tensor, because torch.compile would compile each pass again for another number.
    outside, _global_rows = _global_rows, (torch.tensor(first), total)
    try:
        yield
    finally:
        _global_rows = outside


class SampleDropout2d(nn.Module):
    """Dropout2d whose mask for row j of the global batch is the same for any number of workers.

    In training every worker draws the channel mask of the whole global batch from torch's default CPU generator and keeps its
    own rows: those of `global_rows`, outside of it [rank * B, (rank + 1) * B) of world_size * B. The caller seeds that generator
    equally on every worker before each pass over a part of the batch (`ccnet.step.train_step` does), so that the mask depends
    neither on the workers' shares nor on the passes. torch.compile's inductor draws other numbers, unless
    torch._inductor.config.fallback_random is set.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p = {p}: the share of channels to drop must be in [0, 1)")
        self.p = p

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Zero whole channels with probability p and scale the others by 1 / (1 - p); the identity in evaluation."""
        if not self.training or self.p == 0.0:
            return x
        batch, channels = x.shape[:2]
        first, total = _global_rows or (rank() * batch, world_size() * batch)
        # Drawn on the CPU and in float32 whatever x is, so that the mask is the same on every kind of device.
        kept = torch.rand(total, channels) >= self.p  # [N, C]
        mask = kept[first + torch.arange(batch), :, None, None]  # [B, C, 1, 1]
        # non_blocking, because otherwise the host would wait for the device at every step.
        mask = mask.to(x.device, x.dtype, non_blocking=True)
        return x * mask / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def use_onednn(net: nn.Module) -> None:
    """Lets oneDNN compute the 1x1 convolutions of inference on a CPU with one thread, where torch takes a slower way.

    torch 2.13 (Convolution.cpp, use_mkldnn) leaves them to oneDNN if there are several threads or if they are dilated. A kernel
    of one pixel has nothing that a dilation could move.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.dilation = (2, 2)
