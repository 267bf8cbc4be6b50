"""The command line of every verb: `python -m jobs.VERB CONFIG.yaml [dotted.key=value ...]`."""

import atexit
import gc
import inspect
import io
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from jobs import usage
from pipeline.errors import ConfigError, PipelineError
from pipeline.formatting import show_own_lines
from pipeline.storage import disk

if TYPE_CHECKING:
    from pipeline.config.config import Config


def main(verb: "Callable[[Config], int]", argv: list[str] | None = None) -> int:
    """Runs the verb with the configuration of the command line; returns the exit code of `answering`, 2 for bad settings."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*arguments}:
        print(usage.help_of(_name(verb)))
        return 0
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: {usage.started_as(_name(verb))} CONFIG.yaml [dotted.key=value ...]", file=sys.stderr)
        return 2
    from pipeline.config.load import load  # help does without it: pydantic takes half a second

    try:
        config = load(arguments[0], arguments[1:])
    except ConfigError as error:
        print("\n".join(error.mistakes), file=sys.stderr)
        return 2
    return answering(lambda: verb(config))


def answering(work: Callable[[], int]) -> int:
    """Runs the work of a verb. Returns its exit code: 1 after a PipelineError or a fault of a disk, whose sentence is printed.

    130 after Ctrl-C and 143 after SIGTERM, if it ended before its work was done.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text; the log's stream does this itself
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    show_own_lines()
    atexit.register(gc.freeze)  # without it, the garbage collector scans all objects at exit, for about a second
    connected = _ray_is_connected()
    terminated: list[int] = []

    def terminate(number: int, frame: FrameType | None) -> None:
        """Ends the verb as Ctrl-C does, so that what it began is undone or recorded."""
        terminated.append(number)
        raise KeyboardInterrupt  # Ray replaces a SystemExit by one of its own, with another code

    signal.signal(signal.SIGTERM, terminate)
    try:
        return work()
    except BaseException as error:
        code, answer = _explained(error, bool(terminated))
        if answer is None:
            raise
        if code in _STOPPED:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)  # the next one ends the process at once, without a traceback
        if not connected and _ray_is_connected():
            sys.modules["ray"].shutdown()  # otherwise late lines of its processes would follow the answer
        print(answer, file=sys.stderr)
        return code


def _name(verb: "Callable[[Config], int]") -> str:
    """The verb's name, that of its module, which may run as `__main__`."""
    return Path(inspect.getfile(verb)).stem


_STOPPED = {130: "Ctrl-C", 143: "SIGTERM"}
"""128 + number of a signal -> its name."""


def _explained(error: BaseException, terminated: bool) -> tuple[int, str | None]:
    """Exit code and answer; no answer for an exception that nobody foresaw. `terminated`: SIGTERM has arrived."""
    if isinstance(error, PipelineError):
        return 1, str(error)
    stopped = isinstance(error, SystemExit) and (terminated or error.code == 143)
    if stopped or isinstance(error, KeyboardInterrupt):
        code = 143 if stopped or terminated else 130
        return code, f"stopped by {_STOPPED[code]} before the end: run the same command again"
    return 1, disk.sentence(error) if isinstance(error, Exception) else None


def _ray_is_connected() -> bool:
    ray = sys.modules.get("ray")  # imported only if the verb has needed it
    return ray is not None and bool(ray.is_initialized())
