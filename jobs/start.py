"""`python -m jobs.start FOLDER [dotted.key=value ...]`: from a folder of images and masks to a trained model, with one command.

Looks at the folder (or s3:// prefix), writes NAME.yaml with a reason behind each setting, shows what the training comes to,
prepares, trains, and draws pictures. Run again, it resumes. Nothing in the folder is changed.

--minutes N   time for the training, 15 by default
--name NAME   name of the file and of the run, by default that of the folder
--dry-run     stop before anything is prepared
"""

import argparse
import sys
from collections.abc import Sequence
from shlex import quote

from jobs import usage
from jobs.cli import answering

MINUTES = 15.0


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*words}:
        print(usage.help_of("start"))
        return 0
    parser = argparse.ArgumentParser(prog=usage.started_as("start"), add_help=False)
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("overrides", metavar="dotted.key=value", nargs="*")
    parser.add_argument("--minutes", type=_minutes, default=MINUTES)
    parser.add_argument("--name")
    parser.add_argument("--dry-run", action="store_true")
    try:
        given = parser.parse_intermixed_args(words)
    except SystemExit:  # it has printed why
        return 2
    return answering(lambda: run(given.folder, given.overrides, given.minutes, given.name, dry_run=given.dry_run))


def run(folder: str, overrides: Sequence[str], minutes: float, name: str | None, *, dry_run: bool) -> int:
    """Prints what the training comes to, then its score, the addresses of pictures and model, and what to do next."""
    from pipeline.start.start import begin, finish
    from pipeline.tracking.runs import page

    beginning = begin(folder, overrides, minutes, name)
    print(beginning.table, flush=True)
    if dry_run:
        print(f"\nnothing was prepared: {_command('start')} {quote(folder)} trains with {beginning.file}")
        return 0
    result = finish(beginning)
    outcome = result.outcome
    print(f"\n{outcome.score.table()}\n")
    if outcome.stop_reason:
        print(f"stopped early   {outcome.stop_reason}")
    print(f"pictures        {result.pictures}")
    print(f"of the training {outcome.pictures_url}")
    print(f"model           {outcome.model_url}")
    print(f"MLflow run      {page(outcome.tracking_uri, outcome.run_id)}")
    print("\nnext:")
    for words, about in result.commands:
        print(f"  {_command(words)}    # {about}")
    for fault in result.faults:
        print(fault, file=sys.stderr)
    return 0


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 10**6:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 1")
    return value


def _command(words: str) -> str:
    """A command line of this program, from `VERB ARGUMENTS`."""
    verb, _, rest = words.partition(" ")
    return f"{usage.started_as(verb)} {rest}".strip()


if __name__ == "__main__":
    sys.exit(command())
