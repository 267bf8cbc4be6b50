"""Blocks that the criss-cross operator is compared with. They have the parameters of `ccnet.CrissCrossAttention`, no more."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ccnet import CrissCrossAttention


class PublishedCrissCross(CrissCrossAttention):
    """Criss-cross attention as the published module computes it (speedinghzl/CCNet, branch pure-python), rewritten from scratch.

    Query, key and value are copied to another layout for each direction, a mask [B W, H, H] is made in every pass, and the
    energies of both directions are concatenated for the softmax and split after it.
    """

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        batch, _, height, width = x.shape
        columns, rows = [], []  # query, key, value as [B W, H, .] and [B H, W, .]
        for project in (self.query, self.key, self.value):
            projected = project(x)
            columns.append(projected.permute(0, 3, 1, 2).contiguous().flatten(0, 1).mT)
            rows.append(projected.permute(0, 2, 1, 3).contiguous().flatten(0, 1).mT)
        own = torch.full((height,), float("inf"), device=x.device).diag().neg().repeat(batch * width, 1, 1)
        column = (torch.bmm(columns[0], columns[1].mT) + own).view(batch, width, height, height).transpose(1, 2)  # [B, H, W, H]
        row = torch.bmm(rows[0], rows[1].mT).view(batch, height, width, width)  # [B, H, W, W]
        weights = torch.cat([column, row], dim=3).softmax(dim=3)
        column = weights[..., :height].transpose(1, 2).contiguous().flatten(0, 1)  # [B W, H, H]
        row = weights[..., height:].contiguous().flatten(0, 1)  # [B H, W, W]
        of_column = torch.bmm(columns[2].mT, column.mT).view(batch, width, -1, height).permute(0, 2, 3, 1)  # [B, C, H, W]
        of_row = torch.bmm(rows[2].mT, row.mT).view(batch, height, -1, width).permute(0, 2, 1, 3)  # [B, C, H, W]
        out: Tensor = self.gamma * (of_column + of_row) + x
        return out


class NonLocal(CrissCrossAttention):
    """Every pixel attends to every pixel (https://arxiv.org/abs/1711.07971).

    Without subsampling, as CCNet's authors count it: https://github.com/speedinghzl/CCNet/issues/2.
    """

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        query, key, value = self.query(x).flatten(2), self.key(x).flatten(2), self.value(x).flatten(2)  # [B, C', HW]
        weights = (query.mT @ key).softmax(dim=-1)  # [B, HW, HW]
        out: Tensor = self.gamma * (value @ weights.mT).view_as(x) + x
        return out


class AllPixels(CrissCrossAttention):
    """The non-local block with torch's scaled_dot_product_attention, which does not have to store the weights [B, HW, HW]."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        query, key, value = (project(x).flatten(2).mT for project in (self.query, self.key, self.value))  # [B, HW, C']
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        out: Tensor = self.gamma * attended.mT.reshape_as(x) + x
        return out
