"""`python -m jobs.tune CONFIG.yaml [--export FILE.db]`: searches the space; again, it resumes or extends the search.

With --export it trains nothing, and writes the trials so far as an Optuna study, which optuna-dashboard shows.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config

EXPORT = "--export"


def command(argv: list[str] | None = None) -> int:
    """Runs the command line; --export FILE may be at any place."""
    words = [*(sys.argv[1:] if argv is None else argv)]
    if EXPORT not in words:
        return main(run, words)
    place = words.index(EXPORT)
    if place + 1 == len(words):
        print(f"{EXPORT}: needs the name of a new file, such as {EXPORT} study.db", file=sys.stderr)
        return 2
    file = Path(words[place + 1])
    return main(lambda config: export(config, file), words[:place] + words[place + 2 :])


def export(config: "Config", file: Path) -> int:
    """Writes the search so far into a file and prints how to look at it."""
    from pipeline.tuning import tune

    number = tune.export(config, file)
    print(f"{file}: {number} trials; look at them: pip install optuna-dashboard && optuna-dashboard sqlite:///{file}")
    return 0


def run(config: "Config") -> int:
    """Prints the trials, best first, the best trial's per-class table and the address of the run; 128 + signal if stopped."""
    from pipeline.tracking.runs import page
    from pipeline.tuning.tune import search

    result = search(config)
    print(result.table())
    print(f"\n{result.score.table()}")
    print(f"\nmodel             {result.model_url}")
    print(f'use it            ccnet.load({result.model_url!r}).predict("image.jpg")')
    print(f"report            {result.report_url}")
    print(f"MLflow run        {page(result.tracking_uri, result.run_id)}")
    if result.stopped:
        print(f"ended early       {result.stopped}")
    return 128 + result.signal if result.signal else 0


if __name__ == "__main__":
    sys.exit(command())
