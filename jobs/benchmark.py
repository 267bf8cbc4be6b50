"""`python -m jobs.benchmark CONFIG.yaml`: images per second of decoding, the feed's ways and the training step, side by side."""

import sys
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.benchmark import Figure
    from pipeline.config import Config

# The processes that are measured import this file again: what they need not, they must not load.

FEEDS = ("bare loop", "torch DataLoader")
HEADINGS = ("x bare", "x DataLoader", "with start", "first batch s", "data wait", "peak MiB")


def run(config: "Config") -> int:
    """Prints one JSON line per figure as it is there, and in the end a table for each data set and store."""
    from pipeline.benchmark import benchmark

    figures = []
    for found in benchmark(config):
        for figure in found:
            print(figure.json(), flush=True)
        figures += found
    print(tables(figures))
    return 0


def tables(figures: "list[Figure]") -> str:
    """A table for each data set and store."""
    return "\n".join(_table(list(group)) for _, group in groupby(figures, key=lambda f: (f.data, f.store)))


def _table(figures: "list[Figure]") -> str:
    first = figures[0]
    lines = [f"\n{first.data} on {first.store}: {first.cores} processes on {first.cpus} cores, {first.rounds} rounds"]
    lines.append(f"{'stage':<26}{'images/s':>10}{'spread':>20}{_row(HEADINGS)}")
    for f in figures:
        cells = [
            *(f"{f.ratios[name]:.2f}" if name in f.ratios else "" for name in FEEDS),
            "" if f.from_request is None else f"{f.from_request:.1f}",
            "" if f.first_batch_s is None else f"{f.first_batch_s:.2f}",
            "" if f.data_wait is None else f"{f.data_wait:.1%}",
            "" if f.peak_mib is None else f"{f.peak_mib:.0f}",
        ]
        lines.append(f"{f.stage:<26}{f.median:>10.1f}{f'{f.lowest:.1f} to {f.highest:.1f}':>20}{_row(cells)}".rstrip())
    for f in figures:
        lines += [f"{f.stage}: {ratio:.2f} x {name}" for name, ratio in f.ratios.items() if name not in FEEDS]
        if f.first_batch_cold_s is not None:
            lines.append(f"{f.stage}: first batch {f.first_batch_cold_s:.2f} s on a cluster whose workers have run nothing")
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>{len(heading) + 2}}" for cell, heading in zip(cells, HEADINGS, strict=True))


if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(run))
