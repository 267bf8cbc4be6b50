"""`python -m jobs.benchmark CONFIG.yaml`: images, operator, training step or launchers, side by side."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def run(config: "Config") -> int:
    """Prints one JSON line per figure as soon as it is measured, and a table for each data set and store or map."""
    from pipeline.benchmark.benchmark import benchmark

    for line in benchmark(config):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
