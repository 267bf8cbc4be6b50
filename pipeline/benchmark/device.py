"""The device that a benchmark runs on: waits for it, counts its operations and measures its best rates."""

import math
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 10
Shape = tuple[int, ...]


def own_device() -> torch.device:
    """The GPU of this process, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(run: Callable[[], object], where: torch.device) -> float:
    """Seconds of one call; the device is idle before and after it."""
    wait(where)
    start = time.perf_counter()
    run()
    wait(where)
    return time.perf_counter() - start


def wait(where: torch.device) -> None:
    """Waits until the device has finished its work."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def gflop(run: Callable[[], object]) -> float:
    """Floating-point operations of one call in 10^9; a multiplication and its addition count 2."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _of_addmm}) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def _of_addmm(total: Shape, left: Shape, right: Shape, **_: object) -> int:
    """Operations of `addmm_`: torch's counter knows addmm only, not the in-place form."""
    return 2 * math.prod(left) * right[-1]


def peak_gflops(dtype: torch.dtype, where: torch.device) -> float:
    """10^9 floating-point operations a second in a product of two large square matrices; the best of `REPEATS` tries."""
    side = 8192 if where.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: left @ right, where) for _ in range(REPEATS)) / 1e9


def bandwidth(where: torch.device) -> float:
    """Bytes a second, read plus written, of a copy of a large array; the best of `REPEATS` tries."""
    source = torch.empty(2**28, dtype=torch.float32, device=where).fill_(1.0)
    target = torch.empty_like(source).fill_(0.0)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), where) for _ in range(REPEATS))
