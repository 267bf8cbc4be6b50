"""Criss-cross attention: every pixel looks along its own column and its own row."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class CrissCrossAttention(nn.Module):
    """One pass of criss-cross attention (CCNet, https://arxiv.org/abs/1811.11721, section 3.2).

    With Q, K, V three 1x1 convolutions of the input H and Omega(u) the H + W - 1 pixels in the column and the row of u::

        A(u, i) = softmax over i in Omega(u) of Q(u) . K(i)        (affinity, no 1 / sqrt(d))
        H'(u)   = gamma * sum over i in Omega(u) of A(u, i) V(i)  +  H(u)

    Q, K, V are `query`, `key`, `value`; the paper's A is the pair of maps that `attention` returns. The pixel itself lies in
    both its column and its row and counts once: in the row. The paper has no gamma; the published code has, starting at 0, so
    that a fresh module is the identity, and the published checkpoints carry it.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(
                f"channels = {channels}: must be at least reduction = {reduction}, query and key are channels // reduction"
            )
        self.query = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.key = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def attention(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B H W H"], Float[Tensor, "B H W W"]]:
        """The attention of pixel (h, w): column[b, h, w, j] to pixel (j, w), 0 at j = h, and row[b, h, w, j] to pixel (h, j).

        The H + W entries of a pixel sum to 1.
        """
        query, key = self.query(x), self.key(x)
        height = x.shape[-2]
        column = torch.einsum("bchw,bcjw->bhwj", query, key)  # [B, H, W, H]
        row = torch.einsum("bchw,bchj->bhwj", query, key)  # [B, H, W, W]
        own_row = torch.eye(height, dtype=torch.bool, device=x.device)[:, None, :]  # [H, 1, H]
        column = column.masked_fill(own_row, float("-inf"))
        weights = torch.cat([column, row], dim=-1).softmax(dim=-1)  # [B, H, W, H + W]
        return weights[..., :height], weights[..., height:]

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """One pass; apply the same module R times for recurrence R. Any device, any floating dtype."""
        column, row = self.attention(x)
        value = self.value(x)
        attended = torch.einsum("bhwj,bcjw->bchw", column, value)  # [B, C, H, W]
        attended = attended + torch.einsum("bhwj,bchj->bchw", row, value)  # [B, C, H, W]
        return self.gamma * attended + x
