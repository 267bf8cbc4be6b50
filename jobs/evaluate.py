"""`python -m jobs.evaluate CONFIG.yaml [evaluate.checkpoint=RUN_ID]`: the scores of a checkpoint, with a report."""

import json
import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints the table, the protocol under which its numbers were measured, and where the report is."""
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.reports.evaluation import write_report

    evaluation = evaluate(config)
    print(evaluation.score.table())
    print("protocol " + json.dumps(evaluation.score.protocol), flush=True)
    report = write_report(config, evaluation)
    print(f"report   {report.url}")
    if report.in_mlflow:
        print(f"MLflow   {report.in_mlflow}")
    return 0


if __name__ == "__main__":
    sys.exit(command())
