"""`python -m jobs.prepare CONFIG.yaml [dotted.key=value ...]`: checks a data set, packs it or indexes it in place."""

import sys

from jobs.cli import main
from pipeline.config.config import Config
from pipeline.data.layouts import LayoutError
from pipeline.data.prepare import PrepareError, prepare
from pipeline.data.shards import Manifest
from pipeline.formatting import percent, size


def run(config: Config) -> int:
    """Prepares and prints what there is; 1 with the faults when the source has any."""
    try:
        manifest = prepare(config)
    except (LayoutError, PrepareError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{config.data_url}  fingerprint {manifest.fingerprint[:16]}")
    print(f"\n{split_table(manifest)}\n\n{class_table(manifest)}")
    return 0


def split_table(manifest: Manifest) -> str:
    """Images, their sizes, bytes and share of ignored pixels of each split."""
    lines = [f"{'split':<16}{'images':>10}{'height':>14}{'width':>14}{'bytes':>12}{'ignored':>10}"]
    for name, split in manifest.splits.items():
        spans = zip(split.smallest, split.largest, strict=True)
        height, width = (str(low) if low == high else f"{low} to {high}" for low, high in spans)
        ignored = percent(split.ignored / max(1, split.ignored + sum(split.pixels)))
        lines.append(f"{name:<16}{split.num_images:>10,}{height:>14}{width:>14}{size(split.bytes):>12}{ignored:>10}")
    return "\n".join(lines)


def class_table(manifest: Manifest) -> str:
    """Each class's share of the labelled pixels, and the images that contain it."""
    width = max(16, *(len(name) + 2 for name in manifest.class_names))
    splits = manifest.splits.items()
    lines = [f"{'class':<{width}}" + "".join(f"{name + ' %':>10}{'images':>10}" for name, _ in splits)]
    for k, label in enumerate(manifest.class_names):
        shares = ((100 * split.pixels[k] / max(1, sum(split.pixels)), split.images[k]) for _, split in splits)
        lines.append(f"{label:<{width}}" + "".join(f"{share:>10.2f}{images:>10,}" for share, images in shares))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(run))
