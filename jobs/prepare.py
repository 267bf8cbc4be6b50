"""`python -m jobs.prepare CONFIG.yaml [dotted.key=value ...]`: checks a data set, packs it or indexes it in place."""

import sys

from jobs.cli import main
from pipeline.config.config import Config
from pipeline.data.prepare import prepare
from pipeline.data.statistics import class_table, split_table
from pipeline.errors import SourceError


def run(config: Config) -> int:
    """Prepares and prints what there is; 1 with the faults when the source has any."""
    try:
        manifest = prepare(config)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{config.data_url}  fingerprint {manifest.fingerprint[:16]}")
    print(f"\n{split_table(manifest)}\n\n{class_table(manifest)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
