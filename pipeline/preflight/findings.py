"""Findings of the checks before a run, each with its fix: errors stop the run, warnings do not."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

SHOWN = 20
"""Findings of one level that a report lists; its last line counts all."""


class Finding(NamedTuple):
    """One thing that stops a run (`error`) or probably spoils it (`warning`)."""

    level: Literal["error", "warning"]
    what: str
    """The setting or split, the value found there and the value needed."""
    fix: str = ""
    """What to do; empty when `what` ends with it."""

    @property
    def line(self) -> str:
        return f"{self.what} ({self.fix})" if self.fix else self.what

    def __str__(self) -> str:
        return f"{self.level:<9}{self.what}" + (f"\n{'':<9}fix: {self.fix}" if self.fix else "")


def refuse(found: Sequence[Finding]) -> None:
    """Logs the warnings. Raises ConfigError with all errors if there are any."""
    for finding in found:
        if finding.level == "warning":
            logger.warning("warning: %s", finding.line)
    if errors := [finding.line for finding in found if finding.level == "error"]:
        raise ConfigError(errors)


def report(found: Sequence[Finding]) -> str:
    """The findings, errors first, and their counts."""
    lines, counts = [], []
    for level in ("error", "warning"):
        group = [str(finding) for finding in found if finding.level == level]
        lines += group[:SHOWN] + ([f"{'':<9}... and {len(group) - SHOWN} more"] if len(group) > SHOWN else [])
        counts.append(f"{len(group)} {level}{'' if len(group) == 1 else 's'}")
    return "\n".join([*lines, *([""] if lines else []), ", ".join(counts)])
