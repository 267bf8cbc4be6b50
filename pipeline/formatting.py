"""Formats numbers and tables as text, and limits what is on the screen to the pipeline's own lines."""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that reorder the rest of a line where it is shown. Scripts written from the right do not need them."""


def percent(share: float) -> str:
    """A fraction of 1 as text: `62 %`, `99.9 %`."""
    return f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    """Seconds as text: `40 s`, `25 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(num_bytes: float) -> str:
    """A number of bytes as text: `75 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"


def resources(cpus: float, gpus: float) -> str:
    """`2 CPUs and 1 GPU`, without what is 0."""
    parts = ((cpus, "CPU"), (gpus, "GPU"))
    return " and ".join(f"{number:g} {kind}{'s' * (number != 1)}" for number, kind in parts if number)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 0) -> str:
    """Rows of cells under headings. The first column is left-aligned and at least `width` wide; the others are right-aligned."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    widths[0] = max(width, widths[0])
    return "\n".join(
        "  ".join(
            cell.rjust(wide) if column else cell.ljust(wide) for column, (cell, wide) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def or_none(value: float) -> float | None:
    """The number, or None for NaN, which JSON does not know."""
    return None if value != value else value


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown, whose cells a page can wrap. Each cell ends with a space: MLflow puts none between columns."""
    lines = [[cell.replace("|", "\\|") + "&ensp;" for cell in line] for line in (headings, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(headings), *lines[1:]))


def name_fault(name: str, longest: int) -> str | None:
    """Why a name cannot stand in a table, a picture or a listing, with the fix; None if it can."""
    if len(name) > longest:
        return f"has {len(name)} characters: must be at most {longest} (shorten it)"
    if hidden := [each for each in name if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") or each in DIRECTIONS]:
        return f"contains {hidden[0]!a}: must be one line of text without control characters (remove it)"
    if all(unicodedata.category(each)[0] in "CZM" for each in name):
        return "has no visible character (write a name)"
    return None


def show_own_lines(level: int = logging.INFO) -> None:
    """Logs the pipeline's messages from `level` up, and only warnings of every other package."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("pipeline").setLevel(level)


def hide_on_screen(name: str, start: str) -> None:
    """Drops the lines of a logger that start with `start` from the screen; its files keep them."""
    for handler in logging.getLogger(name).handlers:
        hidden = _Hidden(start)
        if isinstance(handler, logging.StreamHandler) and hidden not in handler.filters:
            handler.addFilter(hidden)


@dataclass(frozen=True)
class _Hidden:
    """A logging filter; equal ones are added once to a handler."""

    start: str

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.start)
