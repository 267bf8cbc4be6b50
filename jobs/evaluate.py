"""`python -m jobs.evaluate CONFIG.yaml [evaluate.checkpoint=RUN_ID]`: the scores of a checkpoint, per class and overall."""

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
    """Prints the table and the protocol under which its numbers were measured."""
    from pipeline.evaluation.evaluate import evaluate

    score = evaluate(config)
    print(score.table())
    print("protocol " + json.dumps(score.protocol))
    return 0


if __name__ == "__main__":
    sys.exit(command())
