"""`python -m jobs.train CONFIG.yaml`: trains, or resumes where the same configuration stopped."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints the table of the best checkpoint and the addresses of checkpoint and run."""
    from pipeline.tracking.runs import page
    from pipeline.training.train import train

    outcome = train(config)
    print(outcome.score.table())
    print(f"\nbest checkpoint   step {outcome.best.step}  {outcome.best.url}  sha256 {outcome.best.sha256[:16]}")
    print(f"model             {outcome.model_url}")
    print(f'use it            ccnet.load({outcome.model_url!r}).predict("image.jpg")')
    print(f"pictures          {outcome.pictures_url}")
    print(f"report            {outcome.report_url}")
    print(f"time              {outcome.seconds:.0f} s")
    if outcome.goodput:
        print(f"goodput           {outcome.goodput}")
    if outcome.stop_reason:
        print(f"stopped early     {outcome.stop_reason}")
    print(f"MLflow run        {page(outcome.tracking_uri, outcome.run_id)}")
    return 0


if __name__ == "__main__":
    sys.exit(command())
