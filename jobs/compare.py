"""`python -m jobs.compare CONFIG.yaml A B`: what differs between two checkpoints, and whether their scores really do.

A and B are what `evaluate.checkpoint` takes: a folder, a delivered model, a run key, an MLflow run id, `models:/NAME@ALIAS`.
"""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main
from jobs.usage import started_as

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    words = sys.argv[1:] if argv is None else argv
    named = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
    if len(named) not in (0, 2):
        print(f"usage: {started_as('compare')} CONFIG.yaml A B [dotted.key=value ...]", file=sys.stderr)
        return 2
    settings = [f"{key}={word}" for key, word in zip(("evaluate.checkpoint", "evaluate.other"), named, strict=False)]
    return main(run, [*(word for word in words if word not in named), *settings])


def run(config: "Config") -> int:
    """Prints the differences and the address of the page."""
    from pipeline.reports.compare import compare, write_page

    found = compare(config)
    print(found.text(), flush=True)
    print(f"\nreport  {write_page(config, found)}")
    return 0


if __name__ == "__main__":
    sys.exit(command())
