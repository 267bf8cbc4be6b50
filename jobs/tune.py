"""`python -m jobs.tune CONFIG.yaml`: searches the configuration's space with ASHA."""

import sys

from jobs.cli import main
from pipeline.config.config import Config
from pipeline.tracking import runs
from pipeline.tracking.client import tracking_uri
from pipeline.tuning.tune import search


def run(config: Config) -> int:
    """Prints the trials, best first, and the best one's per-class table."""
    result = search(config)
    print(result.table())
    print(f"\n{result.score.table()}")
    print(f"\nMLflow run        {runs.page(tracking_uri(config.tracking), result.run_id)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
