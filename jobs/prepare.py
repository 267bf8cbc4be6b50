"""`python -m jobs.prepare CONFIG.yaml [dotted.key=value ...]`: packs the data set into shards and a manifest."""

import sys

from jobs.cli import main
from pipeline.config import Config
from pipeline.layouts import LayoutError
from pipeline.prepare import PrepareError, prepare
from pipeline.shards import Manifest


def run(config: Config) -> int:
    """Prepares and prints what was packed; 1 with the faults when the source cannot be packed."""
    try:
        manifest = prepare(config)
    except (LayoutError, PrepareError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{config.data_url}  fingerprint {manifest.fingerprint[:16]}")
    print(table(manifest))
    return 0


def table(manifest: Manifest) -> str:
    """Images and MiB of each split, then each class's share of the labelled pixels."""
    splits = manifest.splits
    lines = [f"{'split':<16}{'images':>10}{'MiB':>10}"]
    for name, split in splits.items():
        lines.append(f"{name:<16}{split.num_images:>10}{split.bytes / 2**20:>10.1f}")
    lines += ["", f"{'class':<16}" + "".join(f"{name + ' %':>10}" for name in splits)]
    for index, label in enumerate(manifest.class_names):
        shares = (100 * split.pixels[index] / max(1, sum(split.pixels)) for split in splits.values())
        lines.append(f"{label:<16}" + "".join(f"{share:>10.2f}" for share in shares))
    ignored = (100 * split.ignored / max(1, split.ignored + sum(split.pixels)) for split in splits.values())
    return "\n".join([*lines, f"{'(ignored)':<16}" + "".join(f"{share:>10.2f}" for share in ignored)])


if __name__ == "__main__":
    sys.exit(main(run))
