"""Parses the class tables that annotation tools export, into the entries of a `classes.yaml`."""

import csv
import io
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.storage.store import Store

Entry = dict[str, Any]
"""`{id, name}`, with `color: [red, green, blue]` where the table has one."""


def find_table(source: Store) -> str | None:
    """The key of the class table of a source, at its top or in a split's folder; None if there is none."""
    keys = (f"{folder}{name}" for folder in ("", "train/", "training/", "valid/", "val/") for name in PARSERS)
    return next((key for key in keys if source.exists(key)), None)


def parse(key: str, text: str) -> list[Entry]:
    """The entries of the table. Raises ValueError, which names the line and the form that it must have."""
    return PARSERS[posixpath.basename(key)](text)


def labelmap(text: str) -> list[Entry]:
    """CVAT's `labelmap.txt`: `name:red,green,blue:parts:actions`, the id is the position; `#` starts a comment."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [(number, line.split(":")) for number, line in lines if line and not line.startswith("#")]
    entries: list[Entry] = []
    for position, (number, (name, *rest)) in enumerate(rows):
        color = _numbers(number, rest[0].split(","), "name:red,green,blue:parts:actions") if rest and rest[0] else []
        entries.append({"id": position, "name": name.strip(), **({"color": color} if color else {})})
    return entries


def roboflow(text: str) -> list[Entry]:
    """Roboflow's `_classes.csv`: a heading, then `Pixel Value, Class`."""
    return [
        {"id": _numbers(number, row[:1], "Pixel Value, Class")[0], "name": ",".join(row[1:]).strip()}
        for number, row in _rows(text)[1:]
    ]


def class_dict(text: str) -> list[Entry]:
    """`class_dict.csv` of published colour masks: a heading, then `name,r,g,b`; the id is the position."""
    return [
        {"id": position, "name": row[0].strip(), "color": _numbers(number, row[1:], "name,r,g,b")}
        for position, (number, row) in enumerate(_rows(text)[1:])
    ]


PARSERS: dict[str, Callable[[str], list[Entry]]] = {
    "labelmap.txt": labelmap,
    "_classes.csv": roboflow,
    "class_dict.csv": class_dict,
}
"""File name -> its parser."""


def _rows(text: str) -> list[tuple[int, list[str]]]:
    return [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text)), 1) if any(cell.strip() for cell in row)]


def _numbers(number: int, cells: Sequence[str], form: str) -> list[int]:
    try:
        return [int(cell) for cell in cells]
    except ValueError:
        raise ValueError(f"line {number}: {','.join(cells)!r} is no whole number: a line has the form `{form}`") from None
