"""SGD and the polynomial learning rate."""

import math

import torch
from torch import nn
from torch.optim import SGD


def poly_learning_rate(
    base: float, step: int, steps: int, power: float = 0.9, warmup_steps: int = 0, min_lr: float = 0.0
) -> float:
    """min_lr + (base - min_lr) * (1 - step / steps) ** power, times (step + 1) / warmup_steps while this is < 1.

    `step` of `steps` is 0-based. The published recipe has neither a warm-up nor a `min_lr`; that of mmsegmentation is 1e-4.
    ValueError for a step outside 0 .. steps, a negative warm-up or a `min_lr` outside 0 .. base.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps = {warmup_steps}: must be >= 0")
    if not 0.0 <= min_lr <= base:
        raise ValueError(f"min_lr = {min_lr}: must be 0 to the base rate {base}")
    if not 0 <= step <= steps or steps == 0:
        raise ValueError(f"step = {step} of {steps}: must be 0 to {steps}, and steps at least 1")
    rate: float = min_lr + (base - min_lr) * (1.0 - step / steps) ** power
    return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps else rate


def build_optimizer(net: nn.Module, learning_rate: float, momentum: float, weight_decay: float) -> SGD:
    """SGD over the trainable parameters in one group, weight decay on all of them, as published.

    Fused SGD makes one pass over the weights and can skip a step on the device, without the host. The momentum buffers start as
    zeros, with which the first step gives the same result as without buffers. Without them a skipped first step would leave
    buffers that have no value. ValueError for a setting that is negative or not finite.
    """
    for name, value in (("learning_rate", learning_rate), ("momentum", momentum), ("weight_decay", weight_decay)):
        if isinstance(value, str) or value is None or not 0.0 <= value < math.inf:
            raise ValueError(f"{name} = {value!r}: must be a finite number >= 0")
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = SGD(trainable, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True)
    if momentum:
        for parameter in trainable:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer
