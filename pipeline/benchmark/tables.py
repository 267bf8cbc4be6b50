"""Renders figures as lines of JSON and as tables."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.formatting import table

if TYPE_CHECKING:
    from pipeline.benchmark.images import Figure
    from pipeline.benchmark.launchers import LauncherFigure
    from pipeline.benchmark.network import NetworkFigure
    from pipeline.benchmark.operator import OperatorFigure

FEEDS = ("bare loop", "torch DataLoader")


class Measured(Protocol):
    """A named tuple of measurements."""

    def _asdict(self) -> dict[str, Any]: ...


def json_line(figure: Measured) -> str:
    """One line of JSON with names and values; floats are rounded to 5 decimals."""
    return json.dumps(_rounded(figure._asdict()))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 5) if isinstance(value, float) else value


def operator_tables(figures: "list[OperatorFigure]") -> str:
    """A table for each map and recurrence."""
    return "\n".join(_operator_table(list(group)) for _, group in groupby(figures, key=lambda f: (f.shape, f.recurrence)))


def _operator_table(figures: "list[OperatorFigure]") -> str:
    first = figures[0]
    by = f"{first.threads} threads" if first.device == "cpu" else f"ours by {first.computed_by}"
    where = f"{first.precision} on {first.device}, {by}"
    title = f"{' x '.join(map(str, first.shape))}, R = {first.recurrence}, {where}, {first.rounds} rounds"
    headings = ("block", "forward ms", "both ms", "spread", "speedup", "kept MiB", "peak MiB", "GFLOP", "GFLOP/s")
    rows = [
        (
            f.block, f"{1e3 * f.forward_s:.1f}", f"{1e3 * f.both_s:.1f}", f"{1e3 * f.lowest_s:.0f}-{1e3 * f.highest_s:.0f}",
            f"{f.speedup:.2f} x", f"{f.kept_mib:.0f}", f"{f.peak_mib:.0f}", f"{f.gflop:.1f}", f"{f.gflop / f.both_s:.0f}",
        )
        for f in figures
    ]  # fmt: skip
    alone = [
        f"{f.block}, the operator alone: forward {f.forward_x_bytes:.2f} x the time of its bytes, both {f.both_x_bytes:.2f} x"
        for f in figures
        if f.forward_x_bytes is not None
    ]
    return "\n".join([_titled(title, headings, rows), *alone])


def network_table(figures: "list[NetworkFigure]") -> str:
    """The table of the training step, a line for each recipe."""
    first = figures[0]
    title = (
        f"training step of {first.backbone}, crop {first.crop[0]} x {first.crop[1]}, R = {first.recurrence}, "
        f"{first.batch} images, on {first.device}, {first.rounds} rounds"
    )
    headings = ("recipe", "precision", "images/s", "spread", "speedup", "peak MiB", "GFLOP", "of peak", "loss differs")
    rows = [
        (
            f.recipe, f.precision + (" compiled" if f.compiled else ""), f"{f.images_per_s:.2f}",
            f"{f.lowest:.2f}-{f.highest:.2f}", f"{f.speedup:.2f} x", f"{f.peak_mib:.0f}", f"{f.gflop:.0f}",
            f"{f.share_of_peak:.0%}", f"{f.loss_difference:.1e}",
        )
        for f in figures
    ]  # fmt: skip
    return _titled(title, headings, rows)


def launchers_tables(figures: "list[LauncherFigure]") -> str:
    """A table for each number of workers."""
    return "\n".join(_launchers_table(list(group)) for _, group in groupby(figures, key=lambda f: f.workers))


def _launchers_table(figures: "list[LauncherFigure]") -> str:
    first = figures[0]
    title = (
        f"{first.backbone}, crop {first.crop[0]} x {first.crop[1]}, {first.global_batch} images, {first.workers} "
        f"worker{'s' * (first.workers > 1)} on {first.device}, {first.rounds} rounds of {first.steps} steps"
    )
    headings = ("launcher", "ms a step", "spread", "x torchrun", "alone", "x torchrun", "whole run s")
    alone_s = figures[-1].alone_s  # torchrun
    rows = [
        (
            f.launcher, f"{1e3 * f.step_s:.1f}", f"{1e3 * f.lowest_s:.1f}-{1e3 * f.highest_s:.1f}", f"{f.ratio:.3f}",
            f"{1e3 * f.alone_s:.1f}", f"{f.alone_s / alone_s:.3f}", f"{f.whole_s:.1f}",
        )
        for f in figures
    ]  # fmt: skip
    return _titled(title, headings, rows)


def _titled(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"\n{title}\n{table(headings, rows)}"


def images_tables(figures: "list[Figure]") -> str:
    """A table for each data set and store."""
    return "\n".join(_images_table(list(group)) for _, group in groupby(figures, key=lambda f: (f.data, f.store)))


def _images_table(figures: "list[Figure]") -> str:
    first = figures[0]
    title = f"{first.data} on {first.store}: {first.cores} processes on {first.cpus} cores, {first.rounds} rounds"
    headings = ("stage", "images/s", "spread", "x bare", "x DataLoader", "with start", "first batch s", "data wait", "peak MiB")
    rows = [
        (
            f.stage, f"{f.median:.1f}", f"{f.lowest:.1f} to {f.highest:.1f}",
            *(f"{f.ratios[name]:.2f}" if name in f.ratios else "" for name in FEEDS),
            "" if f.from_request is None else f"{f.from_request:.1f}",
            "" if f.first_batch_s is None else f"{f.first_batch_s:.2f}",
            "" if f.data_wait is None else f"{f.data_wait:.1%}",
            "" if f.peak_mib is None else f"{f.peak_mib:.0f}",
        )
        for f in figures
    ]  # fmt: skip
    lines = [_titled(title, headings, rows)]
    for f in figures:
        lines += [f"{f.stage}: {ratio:.2f} x {name}" for name, ratio in f.ratios.items() if name not in FEEDS]
        if f.first_batch_cold_s is not None:
            lines.append(f"{f.stage}: first batch {f.first_batch_cold_s:.2f} s on a cluster whose workers have run no task yet")
    return "\n".join(lines)
