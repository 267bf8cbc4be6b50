"""What a Ray task that fails or dies means to its caller."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from pipeline.errors import TaskDied

_OUR_FRAME = re.compile(r'File ".*?((?:ccnet|pipeline)/[^"]+)", line (\d+), in (\S+)')


@contextmanager
def task_errors(less_memory: str) -> Iterator[None]:
    """Replaces Ray's exception about a task by the exception that the task raised, or by TaskDied.

    Ray's own message is the task's traceback, even if the exception's message was made for the terminal. `less_memory` says how
    the task needs less memory, because too little of it is the usual cause of a death.
    """
    try:
        yield
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if not isinstance(cause, RayError):
            if places := _OUR_FRAME.findall(str(error)):  # only an exception that nobody foresaw shows its notes
                cause.add_note("raised in a Ray task: {} line {} in {}".format(*places[-1]))
            raise cause from None
        if isinstance(cause, OutOfMemoryError):
            raise TaskDied(f"a Ray task was killed because its node ran out of memory: {less_memory}") from error
        reason = str(cause).partition("\n")[0]
        raise TaskDied(
            f"a Ray task died ({reason}): run the command again; if it dies again, its node may lack memory: {less_memory}"
        ) from error
