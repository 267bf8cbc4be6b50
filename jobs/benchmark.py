"""`python -m jobs.benchmark CONFIG.yaml`: measures images, the operator, training steps or launchers."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints each figure as a JSON line as soon as it is measured, and a table for each data set and store, or for each map."""
    from pipeline.benchmark.benchmark import benchmark

    for line in benchmark(config):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(command())
