"""`python -m jobs.predict CONFIG.yaml [predict.images=FOLDER]`: writes masks and overlays to storage.

`python -m jobs.predict MODEL IMAGES... [--out FOLDER]` needs no configuration: MODEL is the folder that jobs.train delivered, or
another address that ccnet.load takes; IMAGES are files, folders or s3:// prefixes. FOLDER is `predictions` by default.
"""

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobs.cli import answering, main
from jobs.usage import started_as

if TYPE_CHECKING:
    from pipeline.config.config import Config
    from pipeline.evaluation.predict import Prediction


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    words = sys.argv[1:] if argv is None else argv
    if not words or {"-h", "--help"} & {*words} or words[0].startswith("-") or words[0].lower().endswith((".yaml", ".yml")):
        return main(run, words)
    parser = argparse.ArgumentParser(prog=started_as("predict"))
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("images", metavar="IMAGES", nargs="+")
    parser.add_argument("--out", metavar="FOLDER", default="predictions")
    try:
        given = parser.parse_args(words)
    except SystemExit:  # it has printed why
        return 2
    return answering(lambda: with_model(given.model, given.images, given.out))


def run(config: "Config") -> int:
    """Prints the address of each mask and overlay, then what is wrong with each image that was not predicted."""
    from pipeline.evaluation.predict import predict

    done, faults = predict(config)
    return _printed([*done, *faults])


def with_model(model: str, images: list[str], output: str) -> int:
    """Predicts images with a delivered model; prints as `run` does, each image as soon as it is done."""
    from pipeline.delivery.predictor import load
    from pipeline.evaluation.predict import predict_files

    return _printed(predict_files(load(model), images, output))


def _printed(results: "Iterable[Prediction | str]") -> int:
    """Prints each result, and at the end the sentences about images that were not predicted; 1 if there are any."""
    faults, done, before = [], 0, 0
    for result in results:
        if isinstance(result, str):
            faults.append(result)
            continue
        done += 1
        before += result.before
        print(f"{result.mask_url}  {result.overlay_url}", flush=True)
    print(f"{done} images predicted" + (f", {before} of them by an earlier call" if before else ""), flush=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(f"images not predicted, named above: {len(faults)}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(command())
