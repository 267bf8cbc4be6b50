"""`python -m jobs.benchmark CONFIG.yaml`: images per second of decoding, the feed and the training step on this machine."""

import sys

from jobs.cli import main
from pipeline.benchmark import benchmark
from pipeline.config import Config


def run(config: Config) -> int:
    """Prints one JSON line per figure and a table with each stage's ratio to the training step."""
    figures = benchmark(config)
    for figure in figures:
        print(figure.json())
    step = figures[-1].images_per_s
    print(f"\n{'stage':<32}{'images/s':>10}{'spread':>20}{'x step':>9}")
    for figure in figures:
        spread = f"{figure.lowest:.1f} to {figure.highest:.1f}"
        print(f"{figure.stage:<32}{figure.images_per_s:>10.1f}{spread:>20}{figure.images_per_s / step:>9.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
