"""`python -m jobs.plan CONFIG.yaml [dotted.key=value ...] [--strict]`: a dry run, and the checks before a run.

Trains nothing and keeps nothing that it writes (a probe of each bucket).
Ends with 1 when there is an error, with --strict also when there is a warning.
"""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config

STRICT = "--strict"


def command(argv: list[str]) -> int:
    """The command; --strict may stand anywhere."""
    return main(lambda config: run(config, strict=STRICT in argv), [word for word in argv if word != STRICT])


def run(config: "Config", *, strict: bool = False) -> int:
    """Prints tables and findings; 1 with an error, or when `strict` with a warning."""
    from pipeline.preflight.plan import plan

    planned = plan(config)
    print(planned.text)
    return int(any(strict or finding.level == "error" for finding in planned.findings))


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
