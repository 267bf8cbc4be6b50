"""Criss-cross attention of given query, key and value in Triton: forward and backward without the energies in memory.

Needs triton. A line is a column or a row. Both directions use the same kernels with other strides: the launch for columns writes,
the launch for rows adds. Sums have a fixed order and no atomics, so equal calls give equal bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, no_type_check

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from jaxtyping import Float
from torch import Tensor

# Positions of a line in one tile. 128 x 128 energies in float32 take 64 registers in each thread of 8 warps. Wider types need
# more registers for the operands.
LONGEST_TILE = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64, torch.float64: 32}
SHORTEST_TILE = 16  # the least that tl.dot accepts
CHANNEL_TILE = 64  # channels of one load: the width of query and key in the published networks
# float32 as three tf32 products: float32's accuracy on the tensor cores. Plain tf32 has 10 bits, an error of 0.1 in an energy of
# 100; "ieee" does not use the tensor cores. The other types ignore this setting.
PRECISION = tl.constexpr("tf32x3")


class _Lines(NamedTuple):
    """Pointer and strides of an array [B, lines, positions, channels]."""

    array: Tensor
    batch: int
    line: int
    position: int
    channel: int


# no_type_check: jaxtyping's import hook would wrap the kernels and hide their globals from triton.


@triton.jit
@no_type_check
def _places(lines, positions, channels, length, num_channels):
    """Addresses [positions, channels] in the program's line, and which of them exist. int64: B * H * W * C can exceed 2^31."""
    start = lines.array + tl.program_id(2).to(tl.int64) * lines.batch + tl.program_id(1).to(tl.int64) * lines.line
    places = start + positions.to(tl.int64)[:, None] * lines.position + channels.to(tl.int64)[None, :] * lines.channel
    return places, (positions[:, None] < length) & (channels[None, :] < num_channels)


@triton.jit
@no_type_check
def _load(lines, positions, channels, length, num_channels):
    """Values [positions, channels], 0 beyond the array."""
    places, exist = _places(lines, positions, channels, length, num_channels)
    return tl.load(places, mask=exist, other=0.0)


@triton.jit
@no_type_check
def _store(tile, lines, positions, channels, length, num_channels, ADD: tl.constexpr):
    """Writes the tile, or with ADD adds it to the stored values; the sum is rounded once, to the array's type."""
    places, exist = _places(lines, positions, channels, length, num_channels)
    if ADD:
        tile += tl.load(places, mask=exist, other=0.0).to(tile.dtype)
    tl.store(places, tile.to(lines.array.dtype.element_ty), mask=exist)


@triton.jit
@no_type_check
def _dot(left, right, total):
    """total + left @ right, with left rounded to the type of right."""
    return tl.dot(left.to(right.dtype), right, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
@no_type_check
def _products(left, right, own, other, length, num_channels, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """left(own) . right(other), summed over the channels: [own, other]."""
    total = tl.zeros([own.shape[0], other.shape[0]], DTYPE)
    for start in range(0, num_channels, TILE):
        channels = start + tl.arange(0, TILE)
        right_tile = _load(right, other, channels, length, num_channels)
        total = _dot(_load(left, own, channels, length, num_channels), tl.trans(right_tile), total)
    return total


@triton.jit
@no_type_check
def _energies(query, key, own, other, length, num_reduced, ROW: tl.constexpr, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """Energies [own, other]; -inf where `other` does not exist, and in a column where a position meets itself."""
    exist = other[None, :] < length
    if not ROW:
        exist = exist & (own[:, None] != other[None, :])
    return tl.where(exist, _products(query, key, own, other, length, num_reduced, TILE, DTYPE), float("-inf"))


@triton.jit
@no_type_check
def _of_query(lines, own, other, length, TRANSPOSED: tl.constexpr, CHANNEL: tl.constexpr):
    """One number per query, shaped to broadcast over [own, other]."""
    if TRANSPOSED:
        return tl.trans(_load(lines, other, CHANNEL + tl.arange(0, 1), length, CHANNEL + 1))
    else:
        return _load(lines, own, CHANNEL + tl.arange(0, 1), length, CHANNEL + 1)


@triton.jit
@no_type_check
def _weights(
    left, right, norms, own, other, length, num_reduced, TRANSPOSED: tl.constexpr, ROW: tl.constexpr, TILE: tl.constexpr
):
    """Attention [own, other], given the joint norms. With TRANSPOSED, own are the keys and other the queries."""
    energy = _energies(left, right, own, other, length, num_reduced, ROW, TILE, norms.array.dtype.element_ty)
    weight = tl.exp(energy - _of_query(norms, own, other, length, TRANSPOSED, 0))
    total = _of_query(norms, own, other, length, TRANSPOSED, 1)
    return weight / tl.where(total == 0.0, 1.0, total)  # 0 beyond the end of the line


@triton.jit(do_not_specialize=["length"])
@no_type_check
def _line_norms(query, key, norms, length, num_reduced, ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Each position's largest energy and its sum of exp(e - largest), over its column; with ROW its row is added."""
    DTYPE: tl.constexpr = norms.array.dtype.element_ty
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), DTYPE)
    total = tl.zeros([BLOCK], DTYPE)
    if ROW:
        largest = tl.max(_load(norms, own, tl.arange(0, 1), length, 1), 1)
        total = tl.max(_load(norms, own, 1 + tl.arange(0, 1), length, 2), 1)
    for start in range(0, length, BLOCK):
        energy = _energies(query, key, own, start + tl.arange(0, BLOCK), length, num_reduced, ROW, TILE, DTYPE)
        larger = tl.maximum(largest, tl.max(energy, 1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # -inf minus -inf would be nan
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(energy - shift[:, None]), 1)
        largest = larger
    _store(largest[:, None], norms, own, tl.arange(0, 1), length, 1, False)
    _store(total[:, None], norms, own, 1 + tl.arange(0, 1), length, 2, False)


@triton.jit(do_not_specialize=["length"])
@no_type_check
def _line_delta(
    query, key, grad, value, delta, norms, length, num_reduced, num_channels,
    ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum over other of attention * (grad . value(other)). grad . out is the same and needs no products, but is rounded in
    another way: where one attention is 1, delta would not cancel the slope in dE.
    """
    DTYPE: tl.constexpr = norms.array.dtype.element_ty
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], DTYPE)
    for first in range(0, length, BLOCK):
        other = first + tl.arange(0, BLOCK)
        slope = _products(grad, value, own, other, length, num_channels, TILE, DTYPE)
        total += tl.sum(slope * _weights(query, key, norms, own, other, length, num_reduced, False, ROW, TILE), 1)
    _store(total[:, None], delta, own, tl.arange(0, 1), length, 1, ROW)


@triton.jit(do_not_specialize=["length"])
@no_type_check
def _line_sum(
    left, right, summed, result, norms, length, num_reduced, num_channels, TRANSPOSED: tl.constexpr, ROW: tl.constexpr,
    ONE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """result(own) = sum over other of attention * summed(other): the output, or with TRANSPOSED the gradient of value.

    ONE: the line fits one tile and its attention is computed once. Otherwise it is computed for each tile of channels.
    """
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if ONE:
        weight = _weights(left, right, norms, own, own, length, num_reduced, TRANSPOSED, ROW, TILE)
    for start in range(0, num_channels, TILE):
        channels = start + tl.arange(0, TILE)
        total = tl.zeros([BLOCK, TILE], norms.array.dtype.element_ty)
        if ONE:
            total = _dot(weight, _load(summed, own, channels, length, num_channels), total)
        else:
            for first in range(0, length, BLOCK):
                other = first + tl.arange(0, BLOCK)
                part = _weights(left, right, norms, own, other, length, num_reduced, TRANSPOSED, ROW, TILE)
                total = _dot(part, _load(summed, other, channels, length, num_channels), total)
        _store(total, result, own, channels, length, num_channels, ROW)


@triton.jit(do_not_specialize=["length"])
@no_type_check
def _line_slope(
    left, right, slope_left, slope_right, result, norms, delta, length, num_reduced, num_channels, TRANSPOSED: tl.constexpr,
    ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """result(own) = sum over other of dE * right(other): the gradient of query, or with TRANSPOSED of key.

    dE = attention * (slope_left(own) . slope_right(other) - delta) is the derivative of the loss by the energy. One of the
    slopes is the gradient of the output, the other is value.
    """
    DTYPE: tl.constexpr = norms.array.dtype.element_ty
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for start in range(0, num_reduced, TILE):
        channels = start + tl.arange(0, TILE)
        total = tl.zeros([BLOCK, TILE], DTYPE)
        for first in range(0, length, BLOCK):
            other = first + tl.arange(0, BLOCK)
            slope = _products(slope_left, slope_right, own, other, length, num_channels, TILE, DTYPE)
            slope -= _of_query(delta, own, other, length, TRANSPOSED, 0)
            slope *= _weights(left, right, norms, own, other, length, num_reduced, TRANSPOSED, ROW, TILE)
            total = _dot(slope, _load(right, other, channels, length, num_reduced), total)
        _store(total, result, own, channels, length, num_reduced, ROW)


@triton.jit(do_not_specialize=["length"])
@no_type_check
def _line_backward(
    grad, query, key, value, grad_query, grad_key, grad_value, norms, delta, length, num_reduced, num_channels,
    ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """All three gradients of a line that fits one tile: its energies are computed once, and grad is read once."""
    DTYPE: tl.constexpr = norms.array.dtype.element_ty
    own = tl.arange(0, BLOCK)
    weight = _weights(query, key, norms, own, own, length, num_reduced, False, ROW, TILE)  # [query, key]
    slope = tl.zeros([BLOCK, BLOCK], DTYPE)
    for start in range(0, num_channels, TILE):
        channels = start + tl.arange(0, TILE)
        grad_tile = _load(grad, own, channels, length, num_channels)
        slope = _dot(grad_tile, tl.trans(_load(value, own, channels, length, num_channels)), slope)
        total = _dot(tl.trans(weight.to(grad_tile.dtype)), grad_tile, tl.zeros([BLOCK, TILE], DTYPE))
        _store(total, grad_value, own, channels, length, num_channels, ROW)
    slope = weight * (slope - _of_query(delta, own, own, length, False, 0))
    for start in range(0, num_reduced, TILE):
        channels = start + tl.arange(0, TILE)
        key_tile = _load(key, own, channels, length, num_reduced)
        total = _dot(slope, key_tile, tl.zeros([BLOCK, TILE], DTYPE))
        _store(total, grad_query, own, channels, length, num_reduced, ROW)
        query_tile = _load(query, own, channels, length, num_reduced)
        total = _dot(tl.trans(slope.to(query_tile.dtype)), query_tile, tl.zeros([BLOCK, TILE], DTYPE))
        _store(total, grad_key, own, channels, length, num_reduced, ROW)


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
    for is_row in (False, True):
        _launch(_line_norms, (query, key, norms), is_row, query.shape[-1], ROW=is_row)
    for is_row in (False, True):
        arrays = (query, key, value, out, norms)
        _launch(_line_sum, arrays, is_row, *widths, ROW=is_row, TRANSPOSED=False, ONE=_fits(query, is_row))
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
    for is_row in (False, True):
        _launch(_line_delta, (query, key, grad, value, delta, norms), is_row, *widths, ROW=is_row)
    for is_row in (False, True):
        if _fits(query, is_row):
            _launch(_line_backward, (grad, query, key, value, *gradients, norms, delta), is_row, *widths, ROW=is_row)
            continue
        of_query, of_key = (query, key, grad, value, grad_query, norms, delta), (key, query, value, grad, grad_key, norms, delta)
        _launch(_line_slope, of_query, is_row, *widths, TRANSPOSED=False, ROW=is_row)
        _launch(_line_slope, of_key, is_row, *widths, TRANSPOSED=True, ROW=is_row)
        _launch(_line_sum, (key, query, grad, grad_value, norms), is_row, *widths, TRANSPOSED=True, ROW=is_row, ONE=False)
    return grad_query, grad_key, grad_value


def _fits(query: Tensor, is_row: bool) -> bool:
    """Whether a line fits one tile."""
    return query.shape[1 + is_row] <= LONGEST_TILE[query.dtype]


def _launch(kernel: Any, arrays: Sequence[Tensor], is_row: bool, *widths: int, **flags: bool) -> None:
    """Runs the kernel on every tile of every row or column of the arrays [B, H, W, *], on their device."""
    views = [array if is_row else array.transpose(1, 2) for array in arrays]  # [B, lines, positions, *]
    num_images, num_lines, length = views[0].shape[:3]
    block = max(SHORTEST_TILE, min(LONGEST_TILE[views[0].dtype], 1 << (length - 1).bit_length()))
    options = {"BLOCK": block, "TILE": CHANNEL_TILE, "num_warps": 8 if block >= 64 else 4, "num_stages": 2}
    lines = [_Lines(view, *view.stride()) for view in views]
    grid = (-(-length // block), num_lines, num_images)
    with torch.cuda.device_of(arrays[0]):  # type: ignore[no-untyped-call]
        kernel[grid](*lines, length, *widths, **options, **flags)
