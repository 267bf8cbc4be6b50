"""`python -m jobs.predict CONFIG.yaml [predict.images=FOLDER]`: writes masks and overlays to storage."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints the address of each mask and overlay, then what is wrong with each image that was not predicted."""
    from pipeline.evaluation.predict import predict

    done, faults = predict(config)
    for prediction in done:
        print(f"{prediction.mask_url}  {prediction.overlay_url}")
    print(f"{len(done)} images predicted", flush=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(f"images not predicted, named above: {len(faults)}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(command())
