"""Criss-cross attention of given query, key and value in Triton: forward and backward without the energies in memory.

Needs triton. Which kernels of `ccnet.line_kernels` run on which lines, with which tiles; `ccnet.dispatch` decides where they run.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ccnet import line_kernels
from ccnet.shapes import Float

# Positions of a line that fits one tile: its attention is computed once. 128 x 128 energies in float32 take 64 registers in each
# thread of 8 warps. Wider types need more registers for the operands.
LONGEST_TILE = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64, torch.float64: 32}
# Positions of one tile of a longer line: two of 128 would compute four times the energies of 129 positions.
TILE_OF_A_LONGER_LINE = 64
SHORTEST_TILE = 16  # the least that tl.dot accepts
# Channels of a result that a program computes at a time: the published width of query and key. With many tiles it computes the
# attention again for each.
WIDTH = 64
# Channels of one load. With 64 in float32 a thread keeps 4 KB of its registers in memory on GPUs before the H100.
TILE = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 32, torch.float64: 32}
# The backward pass holds two tiles of energies. With 64, threads of half types keep up to 1.3 KB of their registers in memory,
# and blocks need more shared memory than an RTX has.
BACKWARD_TILE = 32


def forward(
    query: Float[Tensor, "B H W D"], key: Float[Tensor, "B H W D"], value: Float[Tensor, "B H W C"]
) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W 2"]]:
    """(out, norms): out is the output; norms are each pixel's largest of H + W - 1 energies e and its sum of exp(e - largest).

    CCNet, https://arxiv.org/abs/1811.11721, section 3.2, as in `CrissCrossAttention`: one soft-max over the pixel's column
    without itself and its row, no 1 / sqrt(d). Any strides; B, H and W to 65535; bfloat16, float16, float32 or float64, the same
    for all three. out is contiguous and of that dtype. norms and all sums are float32, or float64 for float64. Half types round
    the attention before it meets value, and the columns' part of out before the rows' is added, as the plain formula does.
    """
    widths = query.shape[-1], value.shape[-1]
    out = value.new_empty(value.shape)  # contiguous
    norms = query.new_empty((*query.shape[:3], 2), dtype=torch.promote_types(query.dtype, torch.float32))
    if _fits(query, False) and _fits(query, True):
        for is_row in (False, True):
            _launch(line_kernels.line_forward, (query, key, value, out, norms), is_row, *widths, ROW=is_row)
        return out, norms
    for is_row in (False, True):
        _launch(line_kernels.line_norms, (query, key, norms), is_row, query.shape[-1], ROW=is_row)
    for is_row in (False, True):
        arrays = (query, key, value, out, norms)
        _launch(line_kernels.line_sum, arrays, is_row, *widths, ROW=is_row, TRANSPOSED=False, ONE=_fits(query, is_row))
    return out, norms


def backward(
    grad: Float[Tensor, "B H W C"],
    query: Float[Tensor, "B H W D"],
    key: Float[Tensor, "B H W D"],
    value: Float[Tensor, "B H W C"],
    norms: Float[Tensor, "B H W 2"],
) -> tuple[Float[Tensor, "B H W D"], Float[Tensor, "B H W D"], Float[Tensor, "B H W C"]]:
    """Gradients of query, key and value, contiguous and of their dtype; grad is that of `forward`'s out, in the same dtype.

    P is the attention, E the energies, delta each query's sum of P * grad V^T. dV = P^T grad, dE = P * (grad V^T - delta),
    dQ = dE K, dK = dE^T Q.
    """
    widths = query.shape[-1], value.shape[-1]
    gradients = grad_query, grad_key, grad_value = tuple(x.new_empty(x.shape) for x in (query, key, value))
    delta = norms.new_empty((*norms.shape[:3], 1))
    for is_row in (False,) if _fits(query, True) else (False, True):  # a row of one tile adds its own
        _launch(line_kernels.line_delta, (query, key, grad, value, delta, norms), is_row, *widths, ROW=is_row)
    for is_row in (True, False):
        if _fits(query, is_row):
            _launch(line_kernels.line_backward, (grad, query, key, value, *gradients, norms, delta), is_row, *widths, ROW=is_row)
            continue
        of_query, of_key = (query, key, grad, value, grad_query, norms, delta), (key, query, value, grad, grad_key, norms, delta)
        of_value = (key, query, grad, grad_value, norms)
        _launch(line_kernels.line_slope, of_query, is_row, *widths, TRANSPOSED=False, ROW=is_row)
        _launch(line_kernels.line_slope, of_key, is_row, *widths, TRANSPOSED=True, ROW=is_row)
        _launch(line_kernels.line_sum, of_value, is_row, *widths, TRANSPOSED=True, ROW=is_row, ONE=False)
    return grad_query, grad_key, grad_value


def _fits(query: Tensor, is_row: bool) -> bool:
    """Whether a line fits one tile."""
    return query.shape[1 + is_row] <= LONGEST_TILE[query.dtype]


def _launch(kernel: Any, arrays: Sequence[Tensor], is_row: bool, *widths: int, **flags: bool) -> None:
    """Runs the kernel on every tile of every row or column of the arrays [B, H, W, *], on their device."""
    views = [array if is_row else array.transpose(1, 2) for array in arrays]  # [B, lines, positions, *]
    num_images, num_lines, length = views[0].shape[:3]
    dtype = arrays[0].dtype
    longest = LONGEST_TILE[dtype]
    block = max(SHORTEST_TILE, 1 << (length - 1).bit_length()) if length <= longest else min(longest, TILE_OF_A_LONGER_LINE)
    # Three stages: while a tile is computed, the next two are on their way.
    options = {"BLOCK": block, "TILE": TILE[dtype], "num_warps": 8 if block >= 64 else 4, "num_stages": 3}
    if kernel is line_kernels.line_norms:
        options["num_stages"] = 2  # query and key are one tile or two: there is no loop to overlap
    if kernel in (line_kernels.line_delta, line_kernels.line_backward):
        options["TILE"] = BACKWARD_TILE
    if kernel in (line_kernels.line_sum, line_kernels.line_slope):
        options["WIDTH"] = WIDTH
    lines = [line_kernels.Lines(view, *view.stride()) for view in views]
    grid = (-(-length // block), num_lines, num_images)
    with torch.cuda.device_of(arrays[0]):  # type: ignore[no-untyped-call]
        kernel[grid](*lines, length, *widths, **options, **flags)
