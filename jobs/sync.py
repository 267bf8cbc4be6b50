"""`python -m jobs.sync CONFIG.yaml`: sends to MLflow what a run could not, and corrects its status, without training.

It takes the metrics and pictures that wait in the run's folder and on this machine; those on the disks of other nodes are sent by
the next start of the run. It starts no Ray.
"""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints what was sent, what MLflow had, what it refuses and why, and the status of the run."""
    from pipeline.tracking.runs import page
    from pipeline.training.sync import sync

    found = sync(config)
    sent, changed = found.sent, "" if found.status == found.before else f"{found.before} -> "
    nothing = not (sent.points or sent.pictures)
    print(f"sent              {'nothing was left' if nothing else f'{sent.points} metric points, {sent.pictures} pictures'}")
    print(f"there before      {sent.there} metric points")
    for what, reason in sent.refused.items():
        print(f"refused           {what}: {reason}")
    if sent.num_refused:
        print(f"                  {sent.num_refused} points and pictures, kept in {found.kept_url}")
    print(f"status            {changed}{found.status}")
    print(f"MLflow run        {page(found.tracking_uri, found.run_id)}")
    return 0


if __name__ == "__main__":
    sys.exit(command())
