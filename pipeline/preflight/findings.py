"""One thing that the doctor found."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One thing that stops a run (`error`) or probably spoils it (`warning`)."""

    level: Literal["error", "warning"]
    what: str
    """The setting or split, what was found there and what is needed."""
    fix: str = ""
    """What to do; empty when `what` ends with it."""

    @property
    def line(self) -> str:
        return f"{self.what} ({self.fix})" if self.fix else self.what

    def __str__(self) -> str:
        return f"{self.level:<9}{self.what}" + (f"\n{'':<9}fix: {self.fix}" if self.fix else "")
