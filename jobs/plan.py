"""`python -m jobs.plan CONFIG.yaml [dotted.key=value ...] [--strict]`: a dry run, and the checks before a run.

Trains nothing. The probe that it writes to each store is deleted again.
The exit code is 1 if there is an error, with --strict also if there is a warning.
"""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config

STRICT = "--strict"


def command(argv: list[str] | None = None) -> int:
    """Runs the command line; --strict may be at any place."""
    argv = sys.argv[1:] if argv is None else argv
    return main(lambda config: run(config, strict=STRICT in argv), [word for word in argv if word != STRICT])


def run(config: "Config", *, strict: bool = False) -> int:
    """Prints tables and findings. Returns 1 if there is an error, with `strict` also if there is a warning."""
    from pipeline.preflight.plan import plan

    planned = plan(config)
    print(planned.text)
    return int(any(strict or finding.level == "error" for finding in planned.findings))


if __name__ == "__main__":
    sys.exit(command())
