"""Compares the criss-cross operator with the published module, a non-local block and attention over all pixels, in turns."""

import ctypes
import logging
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccnet import CrissCrossAttention, criss_cross, dispatch
from ccnet.step import DTYPES, Precision
from pipeline.benchmark.baselines import AllPixels, NonLocal, PublishedCrissCross
from pipeline.benchmark.device import bandwidth, gflop, own_device, seconds, wait
from pipeline.benchmark.processes import SPAWN, own_peak
from pipeline.config.config import Config

logger = logging.getLogger(__name__)

OURS, PUBLISHED = "ours", "published"
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    OURS: CrissCrossAttention, PUBLISHED: PublishedCrissCross, "non-local": NonLocal, "all pixels (SDPA)": AllPixels,
}  # fmt: skip
SAME_FUNCTION: dict[Precision, float] = {"float32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}
"""Largest allowed difference between our and the published result, relative to its largest value: about 10 roundings."""

M_MMAP_THRESHOLD = -3
"""Constant of glibc's malloc.h."""


class Case(NamedTuple):
    """One block on one map, with `recurrence` passes."""

    block: str
    shape: tuple[int, int, int, int]
    """[B, C, H, W]"""
    recurrence: int
    precision: Precision


class OperatorFigure(NamedTuple):
    """Seconds of one case as medians of the rounds, and its memory and operations."""

    block: str
    shape: tuple[int, int, int, int]
    recurrence: int
    precision: str
    device: str
    threads: int
    rounds: int
    forward_s: float
    """Forward pass, without storing what a backward pass needs."""
    both_s: float
    """Forward and backward pass together."""
    lowest_s: float
    highest_s: float
    """Lowest and highest of `both_s`."""
    speedup: float
    """The published block's `both_s` divided by this one's; median over the rounds."""
    kept_mib: float
    """Memory kept for the backward pass, besides parameters and input."""
    peak_mib: float
    """Peak memory of both passes, beyond parameters and input."""
    gflop: float
    """10^9 floating-point operations of both passes; a multiplication and its addition count 2."""
    computed_by: str | None = None
    """What computes our block: "kernels" (Triton) or "products" (batched matrix products); `ccnet.dispatch` logs why."""
    forward_x_bytes: float | None = None
    """Time of the kernels alone, divided by the time to read query, key and value and to write the result at the
    measured bandwidth."""
    both_x_bytes: float | None = None
    """The same with the backward pass, which also reads all these and the result's gradient and writes three gradients."""


def measure_operator(config: Config) -> Iterator[list[OperatorFigure]]:
    """Figures of each map and recurrence; the blocks take turns in every round."""
    settings, device = config.benchmark, own_device()
    for shape in settings.maps:
        for recurrence in (1, 2):
            # Attention over all pixels reaches every pixel in one pass.
            names = [name for name in BLOCKS if recurrence == 1 or name in (OURS, PUBLISHED)]
            cases = [Case(name, shape, recurrence, config.train.precision) for name in names]
            figures = _measure(cases, device, settings.rounds)
            by_kernels = dispatch.kernels(torch.empty(0, device=device, dtype=DTYPES[config.train.precision])) is not None
            figures[0] = figures[0]._replace(computed_by="kernels" if by_kernels else "products")
            if by_kernels and recurrence == 1:
                forward, both = _over_bytes(cases[0], device)
                figures[0] = figures[0]._replace(forward_x_bytes=forward, both_x_bytes=both)
            yield figures


def _measure(cases: list[Case], device: torch.device, rounds: int) -> list[OperatorFigure]:
    made = {case.block: _Made(case, device) for case in cases}
    _agree(made[OURS], made[PUBLISHED])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, each in made.items():
            seconds = each.forward_s(), each.both_s()
            if turn:  # the first one warms up
                times[name].append(seconds)
        logger.info("%s, R = %d: round %d of %d", "x".join(map(str, cases[0].shape)), cases[0].recurrence, turn, rounds)
    figures = []
    for case in cases:
        forward, both = zip(*times[case.block], strict=True)
        of_published = [published / mine for (_, published), mine in zip(times[PUBLISHED], both, strict=True)]
        measured = OperatorFigure(
            *case, str(device), torch.get_num_threads(), rounds, statistics.median(forward), statistics.median(both),
            min(both), max(both), statistics.median(of_published), made[case.block].kept_mib(), peak_mib(case, device),
            gflop(made[case.block].both),
        )  # fmt: skip
        figures.append(measured)
    return figures


class _Made:
    """A case ready to run; the blocks of one shape have the same input and parameters."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device, self.dtype = case, device, DTYPES[case.precision]
        self.block = BLOCKS[case.block](case.shape[1]).to(device)
        nn.init.constant_(self.block.get_parameter("gamma"), 0.5)
        # The layouts of their networks: channels last for ours, contiguous for the published one. On a CPU both are contiguous.
        last = device.type == "cuda" and case.block == OURS
        layout = torch.channels_last if last else torch.contiguous_format
        self.x = torch.randn(case.shape, device=device).contiguous(memory_format=layout).requires_grad_()
        self.grad = torch.randn(case.shape, device=device).contiguous(memory_format=layout)

    def run(self) -> Tensor:
        x: Tensor = self.x
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            for _ in range(self.case.recurrence):
                x = self.block(x)
        return x

    def both(self) -> None:
        y = self.run()
        torch.autograd.backward(y, self.grad.to(y.dtype))
        self.x.grad = None
        self.block.zero_grad()

    def forward_s(self) -> float:
        with torch.no_grad():
            return seconds(self.run, self.device)

    def both_s(self) -> float:
        return seconds(self.both, self.device)

    def kept_mib(self) -> float:
        given = {tensor.untyped_storage().data_ptr() for tensor in (self.x, *self.block.parameters())}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.run()
        return sum(kept.values()) / 2**20


def _agree(ours: _Made, published: _Made) -> None:
    """Raises AssertionError if the two do not compute the same function."""
    with torch.no_grad():
        mine, theirs = ours.run().float(), published.run().float()
    difference = float((mine - theirs).abs().max() / theirs.abs().max())
    assert difference < SAME_FUNCTION[ours.case.precision], f"ours differs from the published block by {difference:.1e}"


def peak_mib(case: Case, device: torch.device) -> float:
    """Peak memory of both passes beyond parameters and input.

    On a CPU it is measured in a separate process, because there torch does not count allocations.
    """
    if device.type == "cuda":
        return _peak_on_gpu(case, device)
    with ProcessPoolExecutor(1, SPAWN) as pool:
        peak: float = pool.submit(_peak_on_cpu, case, torch.get_num_threads()).result()
    return peak


def _peak_on_cpu(case: Case, threads: int) -> float:
    # Gives each large array a separate mapping, which ends when the array is freed: heap fragmentation does not count.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    torch.set_num_threads(threads)
    batch, channels, _, _ = case.shape
    _Made(case._replace(shape=(batch, channels, 4, 4)), torch.device("cpu")).both()  # loads the libraries
    made = _Made(case, torch.device("cpu"))
    made.x.sum(), made.grad.sum()  # touches the pages, so that they are in memory before
    before = own_peak()
    made.both()
    return (own_peak() - before) / 2**20


def _peak_on_gpu(case: Case, device: torch.device) -> float:
    made = _Made(case, device)
    made.both()
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    made.both()
    wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _over_bytes(case: Case, device: torch.device) -> tuple[float, float]:
    """Times of the kernels alone, forward and with the backward pass, divided by the times that moving their bytes takes."""
    from triton.testing import do_bench_cudagraph  # type: ignore[import-untyped] # replays launches without Python between them

    batch, channels, height, width = case.shape
    dtype, reduced = DTYPES[case.precision] or torch.float32, channels // 8
    widths = (reduced, reduced, channels)
    given = [torch.randn(batch, height, width, n, device=device, dtype=dtype, requires_grad=True) for n in widths]
    grad = torch.randn(batch, height, width, channels, device=device, dtype=dtype)

    def forward() -> None:
        with torch.no_grad():
            criss_cross.criss_cross(*given)

    def both() -> None:
        torch.autograd.grad(criss_cross.criss_cross(*given), given, grad)

    # Channels read and written for each position: the backward pass reads forward's inputs and grad, and writes three gradients.
    moved = sum(widths) + channels, 3 * sum(widths) + 2 * channels
    second = bandwidth(device) / (batch * height * width * grad.itemsize)  # channels moved in a second
    ratios = []
    for run, needed in zip((forward, both), moved, strict=True):
        run()  # compiles the kernels
        ratios.append(do_bench_cudagraph(run, return_mode="min") / 1e3 / (needed / second))
    return ratios[0], ratios[1]
