"""`python -m jobs.config CONFIG.yaml [dotted.key=value ...]`: prints every setting as it is used, and the run key."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints a YAML file that gives the same configuration, without the password of the tracking server."""
    from pipeline.config.settings_yaml import dump_yaml

    print(f"# run key {config.run_key}\n{dump_yaml(config.record())}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(command())
