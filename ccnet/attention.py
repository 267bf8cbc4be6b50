"""Criss-cross attention: every pixel attends to its own column and row, every voxel to its three lines."""

import torch
from torch import Tensor, nn

from ccnet import criss_cross
from ccnet.shapes import Float


class CrissCrossAttention(nn.Module):
    """One pass of criss-cross attention (CCNet, https://arxiv.org/abs/1811.11721, section 3.2).

    Q, K and V are three 1x1 convolutions of the input H. Omega(u) are the H + W - 1 pixels in the column and the row of u::

        A(u, i) = softmax over i in Omega(u) of Q(u) . K(i)        (affinity, no 1 / sqrt(d))
        H'(u)   = gamma * sum over i in Omega(u) of A(u, i) V(i)  +  H(u)

    Q, K, V are `query`, `key`, `value`. The paper's A is the pair of maps that `attention` returns. The pixel itself lies in
    both its column and its row; it counts once, in the row. The paper has no gamma. The published code has it, starting at 0 so
    that a fresh module is the identity, and the published checkpoints contain it. `gamma_init` is its first value.
    """

    def __init__(self, channels: int, reduction: int = 8, *, gamma_init: float = 0.0) -> None:
        super().__init__()
        reduced = _reduced(channels, reduction)
        self.query = nn.Conv2d(channels, reduced, kernel_size=1)
        self.key = nn.Conv2d(channels, reduced, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.full((1,), gamma_init))

    def attention(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B H W H"], Float[Tensor, "B H W W"]]:
        """The attention of pixel (h, w), as (column, row).

        column[b, h, w, j] is the attention to pixel (j, w), 0 at j = h. row[b, h, w, j] is the attention to pixel (h, j). The
        H + W entries of a pixel sum to 1.
        """
        query, key = self.query(x), self.key(x)
        return criss_cross.attention(query.permute(0, 2, 3, 1), key.permute(0, 2, 3, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """One pass; apply the same module R times for recurrence R. Any device, any floating dtype.

        The weights A(u, i) of a pixel sum to 1. So the operator sums H itself with these weights, and V's convolution is applied
        to the sum. H' is the same, and the backward pass needs neither V nor H' - H. gamma multiplies the convolution's weights.
        """
        weight, bias = (torch.cat(pair) for pair in zip(_parts(self.query), _parts(self.key), strict=True))
        out_weight, out_bias = (self.gamma * part for part in _parts(self.value))
        return criss_cross.residual(x, weight, bias, out_weight, out_bias)


class CrissCrossAttention3d(nn.Module):
    """One pass of criss-cross attention over time, height and width (CCNet's TPAMI version, arXiv 1811.11721v2).

    The equations are those of `CrissCrossAttention`; Omega(u) are the T + H + W - 2 voxels that differ from u in at most one
    coordinate. The operator treats the axes alike: permuting the axes of the input permutes those of the output. R passes carry
    a voxel to every voxel that differs in at most R coordinates, so R = 3 covers the volume.

    `num_self` is how often the soft-max counts the voxel itself: 1 as in the paper, 2 as in the published code, where it runs
    over T + H + W - 1 entries. The published code also scrambles the attention along one axis; this is not reproduced here.
    """

    def __init__(self, channels: int, reduction: int = 8, *, num_self: int = 1) -> None:
        super().__init__()
        reduced = _reduced(channels, reduction)
        if num_self not in (1, 2):
            raise ValueError(f"num_self = {num_self}: must be 1 (the paper) or 2 (the published code)")
        self.num_self = num_self
        self.query = nn.Conv3d(channels, reduced, kernel_size=1)
        self.key = nn.Conv3d(channels, reduced, kernel_size=1)
        self.value = nn.Conv3d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def attention(
        self, x: Float[Tensor, "B C T H W"]
    ) -> tuple[Float[Tensor, "B T H W T"], Float[Tensor, "B T H W H"], Float[Tensor, "B T H W W"]]:
        """The attention of voxel (t, h, w) to the voxels (j, h, w), (t, j, w) and (t, h, j), in this order.

        The T + H + W entries of a voxel sum to 1. Its attention to itself is 0 except along the last axis, or along the last two
        axes if num_self = 2.
        """
        query, key = self.query(x), self.key(x)
        along_t = criss_cross.without_self(torch.einsum("bcthw,bcjhw->bthwj", query, key), axis=1)  # [B, T, H, W, T]
        along_h = torch.einsum("bcthw,bctjw->bthwj", query, key)  # [B, T, H, W, H]
        if self.num_self == 1:
            along_h = criss_cross.without_self(along_h, axis=2)
        along_w = torch.einsum("bcthw,bcthj->bthwj", query, key)  # [B, T, H, W, W]
        weights = torch.cat([along_t, along_h, along_w], dim=-1).softmax(dim=-1)  # [B, T, H, W, T + H + W]
        time, time_height = x.shape[2], x.shape[2] + x.shape[3]
        return weights[..., :time], weights[..., time:time_height], weights[..., time_height:]

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """One pass; apply the same module R times for recurrence R. Any device, any floating dtype."""
        along_t, along_h, along_w = self.attention(x)
        value = self.value(x)
        attended = torch.einsum("bthwj,bcjhw->bcthw", along_t, value)  # [B, C, T, H, W]
        attended = attended + torch.einsum("bthwj,bctjw->bcthw", along_h, value)  # [B, C, T, H, W]
        attended = attended + torch.einsum("bthwj,bcthj->bcthw", along_w, value)  # [B, C, T, H, W]
        return self.gamma * attended + x


def _parts(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution."""
    assert convolution.bias is not None
    return convolution.weight, convolution.bias


def _reduced(channels: int, reduction: int) -> int:
    """Number of channels of query and key. ValueError if it would be 0."""
    if channels < reduction:
        raise ValueError(
            f"channels = {channels}: must be at least reduction = {reduction} (query and key have channels // reduction channels)"
        )
    return channels // reduction
