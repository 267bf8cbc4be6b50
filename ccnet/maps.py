"""What a pixel attends to: the attention of a head's passes, one by one and composed, as maps over the image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccnet.model import CCNet, RCCAHead
from ccnet.shapes import Float, Shaped

Pass = tuple[Float[Tensor, "B H W H"], Float[Tensor, "B H W W"]]
"""The attention (column, row) of every pixel in one pass, as `CrissCrossAttention.attention` returns it."""


class AttentionMaps(NamedTuple):
    """What one pixel attends to, at stride 8. Each map of each image sums to 1."""

    cell: tuple[int, int]
    """The pixel's (row, column) on the maps."""
    passes: tuple[Float[Tensor, "B h w"], ...]
    """One map per pass, from pass 1 to pass R: zero outside the cell's row and column."""
    composed: Float[Tensor, "B h w"]
    """One map of all R passes together (see `attention_map`)."""


@torch.no_grad()
def attention_passes(head: RCCAHead, features: Float[Tensor, "B C h w"]) -> list[Pass]:
    """The attention of the backbone's features in passes 1 to R, each computed from that pass's own input: H, H', ...

    The head is put into evaluation mode. ValueError for a head without recurrence.
    """
    if head.recurrence == 0:
        raise ValueError("recurrence = 0: the head has no attention to show; build it with recurrence >= 1")
    head.eval()
    reduced = head.conva(features)
    passes = [head.attention.attention(reduced)]
    for _ in range(head.recurrence - 1):
        reduced = head.attention(reduced)
        passes.append(head.attention.attention(reduced))
    return passes


def attention_map(passes: Sequence[Pass], pixel: tuple[int, int]) -> Float[Tensor, "B H W"]:
    """The attention of `pixel` (row, column of the map) composed over consecutive passes: its row of A_R ... A_2 A_1.

    A_r is the [HW, HW] matrix whose row u is pixel u's attention in pass r. Entry i of the map is the share of the pixel's
    attention that ends on source pixel i, directly or through the pixels it attends to. The map sums to 1. A single pass gives
    its criss-cross map; two passes cover every pixel. The matrices are never built: O(HW (H + W)) per pass.

    The map shows attention only. The output of a pixel also depends on the value projections, on gamma and on the residual
    connection, which passes every pixel on to itself; the map ignores all three.

    ValueError for a pixel outside the map.
    """
    batch, height, width, _ = passes[0][1].shape
    _check_inside(pixel, height, width)
    share = passes[0][1].new_zeros(batch, height, width)
    share[:, pixel[0], pixel[1]] = 1
    for column, row in reversed(passes):
        # Pixel u divides its share among the pixels i of its cross in proportion to A(u, i).
        share = torch.einsum("bhw,bhwj->bjw", share, column) + torch.einsum("bhw,bhwj->bhj", share, row)  # [B, H, W]
    return share


@torch.no_grad()
def attention_maps(net: CCNet, image: Shaped[Tensor, "B C H W"], pixel: tuple[int, int]) -> AttentionMaps:
    """What `pixel` (row, column of the image) attends to in each pass and in all together; image uint8[B, 3, H, W], RGB.

    For features instead of an image, use `attention_passes` and `attention_map` of ccnet.maps.

    The maps have the size of the logits. The pixel belongs to the nearest cell when image and map are placed over each other as
    the net's logits are resized (`align_corners`). The net is put into evaluation mode. ValueError for recurrence 0, a pixel
    outside the image, or an image that `CCNet.forward` refuses.
    """
    height, width = image.shape[-2:]
    _check_inside(pixel, height, width)
    net.eval()
    _, layer4 = net.backbone(net.normalise(image))
    passes = attention_passes(net.head, layer4)
    nearest = _cell if net.align_corners else _covering_cell
    cell = (nearest(pixel[0], height, layer4.shape[-2]), nearest(pixel[1], width, layer4.shape[-1]))
    return AttentionMaps(cell, tuple(attention_map([one], cell) for one in passes), attention_map(passes, cell))


def _cell(position: int, size: int, num_cells: int) -> int:
    return round(position * (num_cells - 1) / max(size - 1, 1))


def _covering_cell(position: int, size: int, num_cells: int) -> int:
    return (2 * position + 1) * num_cells // (2 * size)


def _check_inside(pixel: tuple[int, int], height: int, width: int) -> None:
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(f"pixel = {pixel}: must be (row, column) with row 0 to {height - 1} and column 0 to {width - 1}")
