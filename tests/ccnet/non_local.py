"""The non-local block, which criss-cross attention is compared with; nothing but tests and benchmarks needs it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class NonLocal(nn.Module):
    """Every pixel attends to every pixel (https://arxiv.org/abs/1711.07971), set up as CCNet's authors count it.

    Query and key of channels // reduction, value of all channels, gamma and residual, no subsampling:
    https://github.com/speedinghzl/CCNet/issues/2. The parameters are those of `ccnet.CrissCrossAttention`, names included.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.key = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        query, key, value = self.query(x).flatten(2), self.key(x).flatten(2), self.value(x).flatten(2)  # [B, C', HW]
        weights = (query.mT @ key).softmax(dim=-1)  # [B, HW, HW]
        return self.gamma * (value @ weights.mT).view_as(x) + x
