"""The device that a benchmark runs on: waiting for it, counting its products, and what it can do at best."""

import math
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 10
Shape = tuple[int, ...]


def own_device() -> torch.device:
    """The GPU of this process, the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(run: Callable[[], object], where: torch.device) -> float:
    """Time of one call, from and to a moment when the device has nothing to do."""
    wait(where)
    start = time.perf_counter()
    run()
    wait(where)
    return time.perf_counter() - start


def wait(where: torch.device) -> None:
    """Until the device has done all it was given."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def gflop(run: Callable[[], object]) -> float:
    """Products of one call in 10^9, 2 for a multiplication and its addition."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _of_addmm}) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def _of_addmm(total: Shape, left: Shape, right: Shape, **_: object) -> int:
    """What torch's counter knows of addmm and not of the one in place."""
    return 2 * math.prod(left) * right[-1]


def peak_gflops(dtype: torch.dtype, where: torch.device) -> float:
    """10^9 products a second of two large square matrices, the best of a few times."""
    side = 8192 if where.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: left @ right, where) for _ in range(REPEATS)) / 1e9


def bandwidth(where: torch.device) -> float:
    """Bytes a second, read and written, of copying a large array, the best of a few times."""
    source = torch.empty(2**28, dtype=torch.float32, device=where).fill_(1.0)
    target = torch.empty_like(source).fill_(0.0)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), where) for _ in range(REPEATS))
