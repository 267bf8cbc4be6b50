"""The command line of every verb: `python -m jobs.VERB CONFIG.yaml [dotted.key=value ...]`."""

import atexit
import gc
import io
import logging
import sys
from collections.abc import Callable

from pipeline.config.config import Config
from pipeline.config.load import load
from pipeline.errors import ConfigError, PipelineError
from pipeline.formatting import show_own_lines


def main(verb: Callable[[Config], int], argv: list[str] | None = None) -> int:
    """Runs the verb. Returns the verb's exit code, 1 after a PipelineError, 2 for bad settings or a wrong command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text; the log's stream does this itself
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    show_own_lines()
    atexit.register(gc.freeze)  # without it, the garbage collector scans all objects at exit, for about a second
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0].startswith("-"):
        name = verb.__module__ if verb.__module__ != "__main__" else "jobs.VERB"
        print(f"usage: python -m {name} CONFIG.yaml [dotted.key=value ...]", file=sys.stderr)
        return 2
    try:
        config = load(arguments[0], arguments[1:])
    except ConfigError as error:
        print("\n".join(error.mistakes), file=sys.stderr)
        return 2
    try:
        return verb(config)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
