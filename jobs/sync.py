"""`python -m jobs.sync CONFIG.yaml`: sends to MLflow what a run could not, and corrects its status, without training.

With `tune.space` in the configuration, the run is its search, with all trials. It takes the metrics and pictures that wait in the
run's folder and on this machine; those on the disks of other nodes are sent by the next start of the run. It starts no Ray.
"""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config
    from pipeline.training.sync import Synced


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints what was sent, what MLflow had, what it refuses and why, and the status of the run; first each trial of a search."""
    if config.tune.space:
        from pipeline.tuning.sync import sync as sync_search

        found = sync_search(config)
        for name, trial in found.trials.items():
            if line := _changes(trial):
                print(f"trial {name:<11} {line}")
        for name in found.without_run:
            print(f"trial {name:<11} MLflow has no run of it (deleted?); its points stay in its folder")
        _show(found.whole)
    else:
        from pipeline.training.sync import sync

        _show(sync(config))
    return 0


def _changes(trial: "Synced") -> str:
    """What a trial had, in one line; empty if it had nothing."""
    sent, parts = trial.sent, []
    if sent.points or sent.pictures:
        parts.append(f"{sent.points} metric points, {sent.pictures} pictures")
    if sent.num_refused:
        parts.append(f"{sent.num_refused} refused")
    if trial.status != trial.before:
        parts.append(f"{trial.before} -> {trial.status}")
    return "; ".join(parts)


def _show(found: "Synced") -> None:
    from pipeline.tracking.runs import page

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


if __name__ == "__main__":
    sys.exit(command())
