"""The Triton kernels of criss-cross attention, each a part of the operator on every line; `ccnet.kernels` launches them.

A line is a column or a row: an array's strides say which, ROW where it makes a difference. The forward pass takes the columns
first, and the rows add to what they wrote; the backward pass takes the rows first. Sums have a fixed order and no atomics, so
equal calls give equal bits.
"""

from typing import NamedTuple, no_type_check

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

# float32 as three tf32 products: float32's accuracy on the tensor cores. Plain tf32 has 10 bits, an error of 0.1 in an energy of
# 100; "ieee" does not use the tensor cores. The other types ignore this setting.
PRECISION = tl.constexpr("tf32x3")


class Lines(NamedTuple):
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
def line_forward(
    query, key, value, out, norms, length, num_reduced, num_channels, ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Output and norms of a line that fits one tile. A column's are those of a softmax over the column alone; with ROW they are
    merged with the row's by their sums of exponentials.
    """
    DTYPE: tl.constexpr = norms.array.dtype.element_ty
    own = tl.arange(0, BLOCK)
    energy = _energies(query, key, own, own, length, num_reduced, ROW, TILE, DTYPE)
    largest = tl.max(energy, 1)[:, None]
    if ROW:
        of_column = _load(norms, own, tl.arange(0, 1), length, 1)
        largest = tl.maximum(largest, of_column)
    shift = tl.where(largest == float("-inf"), 0.0, largest)  # a column of one position has no energy
    weight = tl.exp(energy - shift)
    total = tl.sum(weight, 1)[:, None]
    if ROW:
        share = tl.exp(of_column - shift) * _load(norms, own, 1 + tl.arange(0, 1), length, 2)
        total += share
        share = share / total  # the column's share of the attention
    weight = weight / tl.where(total == 0.0, 1.0, total)
    for start in range(0, num_channels, TILE):
        channels = start + tl.arange(0, TILE)
        result = _dot(weight, _load(value, own, channels, length, num_channels), tl.zeros([BLOCK, TILE], DTYPE))
        if ROW:
            result += share * _load(out, own, channels, length, num_channels).to(DTYPE)
        _store(result, out, own, channels, length, num_channels, False)
    _store(largest, norms, own, tl.arange(0, 1), length, 1, False)
    _store(total, norms, own, 1 + tl.arange(0, 1), length, 2, False)


@triton.jit(do_not_specialize=["length"])
@no_type_check
def line_norms(query, key, norms, length, num_reduced, ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
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
def line_delta(
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
def line_sum(
    left, right, summed, result, norms, length, num_reduced, num_channels, TRANSPOSED: tl.constexpr, ROW: tl.constexpr,
    ONE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """result(own) = sum over other of attention * summed(other): the output, or with TRANSPOSED the gradient of value.

    ONE: the line fits one tile and its attention is computed once. Otherwise it is computed for each WIDTH channels.
    """
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if ONE:
        weight = _weights(left, right, norms, own, own, length, num_reduced, TRANSPOSED, ROW, TILE)
    for start in range(0, num_channels, WIDTH):
        channels = start + tl.arange(0, WIDTH)
        total = tl.zeros([BLOCK, WIDTH], norms.array.dtype.element_ty)
        if ONE:
            total = _dot(weight, _load(summed, own, channels, length, num_channels), total)
        else:
            for first in range(0, length, BLOCK):
                other = first + tl.arange(0, BLOCK)
                part = _weights(left, right, norms, own, other, length, num_reduced, TRANSPOSED, ROW, TILE)
                total = _dot(part, _load(summed, other, channels, length, num_channels), total)
        _store(total, result, own, channels, length, num_channels, ROW != TRANSPOSED)


@triton.jit(do_not_specialize=["length"])
@no_type_check
def line_slope(
    left, right, slope_left, slope_right, result, norms, delta, length, num_reduced, num_channels, TRANSPOSED: tl.constexpr,
    ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """result(own) = sum over other of dE * right(other): the gradient of query, or with TRANSPOSED of key.

    dE = attention * (slope_left(own) . slope_right(other) - delta) is the derivative of the loss by the energy. One of the
    slopes is the gradient of the output, the other is value.
    """
    DTYPE: tl.constexpr = norms.array.dtype.element_ty
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for start in range(0, num_reduced, WIDTH):
        channels = start + tl.arange(0, WIDTH)
        total = tl.zeros([BLOCK, WIDTH], DTYPE)
        for first in range(0, length, BLOCK):
            other = first + tl.arange(0, BLOCK)
            slope = _products(slope_left, slope_right, own, other, length, num_channels, TILE, DTYPE)
            slope -= _of_query(delta, own, other, length, TRANSPOSED, 0)
            slope *= _weights(left, right, norms, own, other, length, num_reduced, TRANSPOSED, ROW, TILE)
            total = _dot(slope, _load(right, other, channels, length, num_reduced), total)
        _store(total, result, own, channels, length, num_reduced, not ROW)


@triton.jit(do_not_specialize=["length"])
@no_type_check
def line_backward(
    grad, query, key, value, grad_query, grad_key, grad_value, norms, delta, length, num_reduced, num_channels,
    ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """All three gradients of a line that fits one tile: its energies are computed once, and grad is read once.

    With ROW delta is the columns' and the row's is added. The columns come after, for which it is complete.
    """
    DTYPE: tl.constexpr = norms.array.dtype.element_ty
    own = tl.arange(0, BLOCK)
    weight = _weights(query, key, norms, own, own, length, num_reduced, False, ROW, TILE)  # [query, key]
    slope = tl.zeros([BLOCK, BLOCK], DTYPE)
    for start in range(0, num_channels, TILE):
        channels = start + tl.arange(0, TILE)
        grad_tile = _load(grad, own, channels, length, num_channels)
        slope = _dot(grad_tile, tl.trans(_load(value, own, channels, length, num_channels)), slope)
        total = _dot(tl.trans(weight.to(grad_tile.dtype)), grad_tile, tl.zeros([BLOCK, TILE], DTYPE))
        _store(total, grad_value, own, channels, length, num_channels, not ROW)
    mean = _of_query(delta, own, own, length, False, 0)
    if ROW:
        mean += tl.sum(weight * slope, 1)[:, None]
        _store(mean, delta, own, tl.arange(0, 1), length, 1, False)
    slope = weight * (slope - mean)
    for start in range(0, num_reduced, TILE):
        channels = start + tl.arange(0, TILE)
        key_tile = _load(key, own, channels, length, num_reduced)
        total = _dot(slope, key_tile, tl.zeros([BLOCK, TILE], DTYPE))
        _store(total, grad_query, own, channels, length, num_reduced, not ROW)
        query_tile = _load(query, own, channels, length, num_reduced)
        total = _dot(tl.trans(slope.to(query_tile.dtype)), query_tile, tl.zeros([BLOCK, TILE], DTYPE))
        _store(total, grad_key, own, channels, length, num_reduced, not ROW)
