"""`python -m jobs.predict CONFIG.yaml [predict.images=FOLDER]`: writes masks and overlays to storage.

`python -m jobs.predict MODEL IMAGES... [--out FOLDER]` needs no configuration: MODEL is the folder that jobs.train delivered, or
another address that ccnet.load takes; IMAGES are files, folders or s3:// prefixes. FOLDER is `predictions` by default. `--masks`,
`--no-overlay` and `--confidence` are the settings `predict.masks`, `predict.overlay` and `predict.confidence`.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jobs.cli import answering, main
from jobs.usage import started_as

if TYPE_CHECKING:
    from pipeline.config.config import Config
    from pipeline.evaluation.results import Prediction


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    words = sys.argv[1:] if argv is None else argv
    if not words or {"-h", "--help"} & {*words} or words[0].startswith("-") or words[0].lower().endswith((".yaml", ".yml")):
        return main(run, words)
    parser = argparse.ArgumentParser(prog=started_as("predict"))
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("images", metavar="IMAGES", nargs="+")
    parser.add_argument("--out", metavar="FOLDER", default="predictions")
    parser.add_argument("--masks", choices=("ids", "palette", "cityscapes"), default="ids")
    parser.add_argument("--no-overlay", action="store_false", dest="overlay")
    parser.add_argument("--confidence", action="store_true")
    try:
        given = parser.parse_args(words)
    except SystemExit:  # it has printed why
        return 2
    return answering(lambda: with_model(**vars(given)))


def run(config: "Config") -> int:
    """Prints the addresses of each image's results, then what is wrong with each image that was not predicted."""
    from pipeline.evaluation.predict import predict

    started = time.monotonic()
    done, faults = predict(config)
    return _printed([*done, *faults], started)


def with_model(model: str, images: list[str], out: str, **form: Any) -> int:
    """Predicts images with a delivered model; prints as `run` does, each image as soon as it is done.

    `form`: settings of the section `predict`.
    """
    from pipeline.config.evaluate import Predict
    from pipeline.delivery.predictor import load
    from pipeline.evaluation.predict import predict_files

    started = time.monotonic()
    return _printed(predict_files(load(model), images, out, Predict(**form)), started)


def _printed(results: "Iterable[Prediction | str]", started: float) -> int:
    """Prints each result, and at the end the sentences about images that were not predicted; 1 if there are any."""
    faults, done, before = [], 0, 0
    for result in results:
        if isinstance(result, str):
            faults.append(result)
            continue
        done += 1
        before += result.before
        print("  ".join(filter(None, (result.mask_url, result.overlay_url, result.confidence_url))), flush=True)
    seconds = time.monotonic() - started
    rate = f" in {seconds:.0f} s ({(done - before) / seconds:.3g} images/s)" if done > before else ""
    print(f"{done} images predicted{rate}" + (f", {before} of them by an earlier call" if before else ""), flush=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(f"images not predicted, named above: {len(faults)}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(command())
