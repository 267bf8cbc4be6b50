"""`python -m jobs.prepare CONFIG.yaml [dotted.key=value ...]`: checks a data set, then packs it or indexes it in place."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints the account of the source's files, and the splits and classes of the prepared data set."""
    from pipeline.data.prepare import prepare
    from pipeline.data.statistics import class_table, split_table

    manifest = prepare(config)
    print("\n".join([f"{config.data_url}  fingerprint {manifest.fingerprint[:16]}", *manifest.files]))
    for what, fix in manifest.left_out:
        print(f"warning: {what} ({fix})", file=sys.stderr)
    print(f"\n{split_table(manifest)}\n\n{class_table(manifest)}")
    return 0


if __name__ == "__main__":
    sys.exit(command())
