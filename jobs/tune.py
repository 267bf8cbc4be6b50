"""`python -m jobs.tune CONFIG.yaml`: searches the configuration's space; the same command resumes or extends the search."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints the trials, best first, the best trial's per-class table and the address of the run; 128 + signal if stopped."""
    from pipeline.tracking.runs import page
    from pipeline.tuning.tune import search

    result = search(config)
    print(result.table())
    print(f"\n{result.score.table()}")
    print(f"\nmodel             {result.model_url}")
    print(f'use it            ccnet.load({result.model_url!r}).predict("image.jpg")')
    print(f"MLflow run        {page(result.tracking_uri, result.run_id)}")
    if result.stopped:
        print(f"ended early       {result.stopped}")
    return 128 + result.signal if result.signal else 0


if __name__ == "__main__":
    sys.exit(command())
