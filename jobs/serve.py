"""`python -m jobs.serve MODEL [--host 127.0.0.1] [--port 8000] [--replicas 1]`: answers images with masks, over HTTP.

MODEL is what ccnet.load takes: a delivered folder, an `s3://` prefix, `models:/NAME@champion`, an MLflow run id. An alias is
followed: when it points to another version, that one answers, and no request is lost.

  --host HOST         where it listens; on other than loopback, clients must send the token in CCNET_SERVE_TOKEN
  --port PORT         8000
  --replicas N        copies of the model, each on a GPU if there are enough, else with its share of the CPUs
  --max-bytes BYTES   largest body of a request: 33554432
  --max-pixels N      largest image: 16777216, which is 4096 x 4096
  --open              other machines may ask without a token
"""

import argparse
import inspect
import sys

from jobs.cli import answering
from jobs.usage import started_as


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*words}:
        print(inspect.getdoc(sys.modules[__name__]))
        return 0
    parser = argparse.ArgumentParser(prog=started_as("serve"), add_help=False)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--host")
    parser.add_argument("--open", action="store_true", default=None)
    for name in ("--port", "--replicas", "--max-bytes", "--max-pixels"):
        parser.add_argument(name, type=_positive)
    try:
        given = parser.parse_args(words)
    except SystemExit:  # it has printed why
        return 2
    return answering(lambda: run({key: value for key, value in vars(given).items() if value is not None}))


def run(given: dict[str, str | int | bool]) -> int:
    """Serves until Ctrl-C or SIGTERM, which are its normal end."""
    from pipeline.serving.serve import Options, metrics_urls, serving, wait

    options = Options(**given)  # type: ignore[arg-type]
    try:
        with serving(options) as url:
            print(f"page     {url}/")
            print(f"predict  curl --data-binary @IMAGE {url}/predict -o mask.png")
            print(f"health   {url}/healthz")
            print(f"metrics  {'  '.join(metrics_urls())}", flush=True)
            wait()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(command())
