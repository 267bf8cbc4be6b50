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
from pipeline.storage import disk


def main(verb: Callable[[Config], int], argv: list[str] | None = None) -> int:
    """Runs the verb. Returns its exit code, 1 after a PipelineError or a fault of a disk, 2 for bad settings or command lines."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text; the log's stream does this itself
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    show_own_lines()
    atexit.register(gc.freeze)  # without it, the garbage collector scans all objects at exit, for about a second
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*arguments}:
        print(sys.modules[verb.__module__].__doc__)
        return 0
    if not arguments or arguments[0].startswith("-"):
        started = getattr(sys.modules["__main__"], "__spec__", None)
        name = started.name if started and verb.__module__ == "__main__" else verb.__module__
        print(f"usage: python -m {name} CONFIG.yaml [dotted.key=value ...]", file=sys.stderr)
        return 2
    try:
        config = load(arguments[0], arguments[1:])
    except ConfigError as error:
        print("\n".join(error.mistakes), file=sys.stderr)
        return 2
    connected = _ray_is_connected()
    try:
        return verb(config)
    except Exception as error:
        answer = str(error) if isinstance(error, PipelineError) else disk.sentence(error)
        if answer is None:
            raise
        if not connected and _ray_is_connected():
            sys.modules["ray"].shutdown()  # otherwise late lines of its processes would follow the answer
        print(answer, file=sys.stderr)
        return 1


def _ray_is_connected() -> bool:
    ray = sys.modules.get("ray")  # imported only if the verb has needed it
    return ray is not None and bool(ray.is_initialized())
