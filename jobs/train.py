"""`python -m jobs.train CONFIG.yaml`: trains, or goes on where the same configuration stopped."""

import sys

from jobs.cli import main
from pipeline.config.config import Config
from pipeline.tracking import runs
from pipeline.tracking.client import tracking_uri
from pipeline.training.train import train


def run(config: Config) -> int:
    """Prints the table of the best checkpoint and where to look at the run."""
    outcome = train(config)
    print(outcome.score.table())
    print(f"\nbest checkpoint   step {outcome.best.step}  {outcome.best.url}  sha256 {outcome.best.sha256[:16]}")
    print(f"time              {outcome.seconds:.0f} s")
    if outcome.left_off:
        print(f"left off          {outcome.left_off}")
    print(f"MLflow run        {runs.page(tracking_uri(config.tracking), outcome.run_id)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
