"""The k-th smallest value of the global batch, without gathering its data."""

import torch
import torch.distributed as dist
from torch import Tensor

from ccnet.shapes import Bool, Float, Int64

_DIGIT_BITS = 16


@torch.no_grad()
def kth_smallest(values: Float[Tensor, " n"], valid: Bool[Tensor, " n"], k: int) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
    """The k-th smallest (counted from 1) of the valid values of all workers, exactly, and the number of valid values.

    Values must be float32 or float64 and not negative; a NaN counts as larger than all others. Workers may hold different
    numbers of values. With k = 0 the value is 0, with k above the number of valid values it is meaningless.

    Radix select: the bit patterns of non-negative floats have the order of the floats. Each round finds the next 16 bits of the
    result, from the top, by a histogram over the values that begin with the bits found so far. A round is one collective of
    65,536 integers, whatever the number of values and workers, and the host never waits for the device.
    """
    bits = torch.finfo(values.dtype).bits
    integers = torch.int32 if bits == 32 else torch.int64
    # Without the sign bit, which a NaN may have set.
    patterns = values.contiguous().view(integers).long() & ((1 << (bits - 1)) - 1)  # [n]
    prefix = patterns.new_zeros(1)
    rank, num_valid = torch.full_like(prefix, k), prefix
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        candidate = valid if shift == bits - _DIGIT_BITS else valid & (patterns >> (shift + _DIGIT_BITS) == prefix)
        digit = (patterns >> shift) & ((1 << _DIGIT_BITS) - 1)
        histogram = patterns.new_zeros(1 << _DIGIT_BITS).scatter_add(0, digit, candidate.long())
        if dist.is_initialized():
            dist.all_reduce(histogram)
        below_or_at = histogram.cumsum(0)
        if shift == bits - _DIGIT_BITS:
            num_valid = below_or_at[-1:]
        found = torch.searchsorted(below_or_at, rank).clamp(max=histogram.numel() - 1)  # [1]
        rank = rank - (below_or_at - histogram).gather(0, found)
        prefix = (prefix << _DIGIT_BITS) | found
    return prefix.to(integers).view(values.dtype)[0], num_valid[0]
