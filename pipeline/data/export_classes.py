"""Parses the class tables that annotation tools export, into the entries of a `classes.yaml`."""

import csv
import io
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.storage.store import Store

FOLDERS = ("", "train/", "training/", "valid/", "val/", "validation/", "test/")
Entry = dict[str, Any]
"""`{id, name}`, with `color: [red, green, blue]` where the table has one."""


def find_tables(source: Store) -> list[str]:
    """The keys of the class tables of a source, at its top and in the splits' folders: all of the first name that is found."""
    keys = (f"{folder}{name}" for folder in FOLDERS for name in PARSERS)
    first = next((key for key in keys if source.exists(key)), None)
    name = posixpath.basename(first or "")
    return [key for folder in FOLDERS if source.exists(key := f"{folder}{name}")] if first else []


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


def class_names(text: str) -> list[Entry]:
    """`class_names.txt` of labelme's labelme2voc.py: a name in each line, the id is the position."""
    return [{"id": position, "name": name.strip()} for position, name in enumerate(text.strip().splitlines())]


PARSERS: dict[str, Callable[[str], list[Entry]]] = {
    "labelmap.txt": labelmap,
    "_classes.csv": roboflow,
    "class_dict.csv": class_dict,
    "class_names.txt": class_names,
}
"""File name -> its parser."""


def _rows(text: str) -> list[tuple[int, list[str]]]:
    return [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text)), 1) if any(cell.strip() for cell in row)]


def _numbers(number: int, cells: Sequence[str], form: str) -> list[int]:
    try:
        return [int(cell) for cell in cells]
    except ValueError:
        raise ValueError(f"line {number}: {','.join(cells)!r} is no whole number: a line has the form `{form}`") from None
