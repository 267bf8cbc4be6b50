"""What follows a training step: a line, a validation, a checkpoint, leaving off."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from pipeline.config.train import Train
from pipeline.fault_tolerance.interruptions import Interruption


class SupportsBool(Protocol):
    """A bool, or a tensor that holds one."""

    def __bool__(self) -> bool: ...


class Turn(NamedTuple):
    """What follows a step; the same on every worker."""

    logs: bool
    validates: bool
    saves: bool
    leaves: Interruption | None = None


class Agenda:
    """Tells what follows each step; a validation that is due waits for a step that was not left out.

    What cannot learn any more is nothing to go back to. `look` is that of a Lookout.
    """

    def __init__(self, train: Train, look: Callable[[int, float], Interruption | None]) -> None:
        self.train, self.look, self.due = train, look, False

    def after(self, done: int, applied: SupportsBool, stored_s: float) -> Turn:
        """What follows `done` steps, the last of which changed the weights (`applied`) or was left out.

        `applied` is asked only where something depends on it, for to ask a tensor is to wait for its device.
        `stored_s`: seconds that storing a checkpoint takes. Every worker must call it after each step.
        """
        last = done == self.train.steps
        logs = last or done % self.train.log_every == 0
        self.due = self.due or done % self.train.validate_every == 0
        found = None if last else self.look(done, stored_s)
        if found and not applied:  # no checkpoint here: who is not driven out stays until the next look
            found = found._replace(saves=False) if found.moves else None
        if found:
            # Where there is no time for a validation, whoever goes on makes up for it.
            return Turn(logs, found.validates, found.saves, found)
        validates = last or (self.due and bool(applied))
        self.due = self.due and not validates
        return Turn(logs, validates, validates)
