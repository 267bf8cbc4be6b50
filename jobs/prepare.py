"""`python -m jobs.prepare CONFIG.yaml [dotted.key=value ...]`: checks a data set, then packs it or indexes it in place.

With --write-classes it only looks at the labels of a source without a class table, and writes classes.yaml there.
"""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


WRITE_CLASSES = "--write-classes"


def command(argv: list[str] | None = None) -> int:
    """Runs the command line; --write-classes may be at any place."""
    argv = sys.argv[1:] if argv is None else argv
    if WRITE_CLASSES in argv:
        return main(propose_classes, [word for word in argv if word != WRITE_CLASSES])
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


def propose_classes(config: "Config") -> int:
    """Prints the class table that it writes into the source, and what is doubtful about it."""
    from pipeline.config.settings_yaml import flow
    from pipeline.data.proposal import write_classes

    address, proposal = write_classes(config)
    print("\n".join([f"{address}: written; give the classes their names there", *map(flow, proposal.entries)]))
    for note in proposal.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(command())
