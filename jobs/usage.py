"""What each verb is for, how it is started and which settings it reads: for the list of verbs and for `--help`."""

import difflib
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType

from jobs.reference import TOP, help_text, sections

RUN = (TOP, "storage", "data", "model", "train", "loss", "tracking")
"""Sections that tell which run is meant, and where it is recorded."""
TRAIN = (*RUN, "faults", "stop", "evaluate")
SECTIONS = {
    "prepare": (TOP, "storage", "data"),
    "plan": TRAIN,
    "train": TRAIN,
    "tune": (*TRAIN, "tune"),
    "sync": (*TRAIN, "tune"),
    "evaluate": (*RUN, "evaluate"),
    "compare": (*RUN, "evaluate"),
    "predict": (*RUN, "evaluate", "predict"),
    "export": (*RUN, "evaluate", "export"),
    "benchmark": (TOP, "storage", "data", "model", "train", "loss", "benchmark"),
}
"""Verb that a cluster can run -> sections that it reads."""
VERBS = ("start", *SECTIONS, "serve", "config", "submit")
"""All verbs, in the order in which a newcomer meets them."""


def module_of(verb: str) -> ModuleType:
    """The module of a verb; its `command(arguments)` runs it."""
    return importlib.import_module(f"jobs.{verb}")


def started_as(verb: str) -> str:
    """How the user starts a verb: with the installed command, or with Python."""
    return f"ccnet {verb}" if Path(sys.argv[0]).stem == "ccnet" else f"python -m jobs.{verb}"


def all_verbs() -> str:
    """The list of verbs, one a line."""
    about = {verb: (inspect.getdoc(module_of(verb)) or "").split("\n")[0].partition("`: ")[2].rstrip(".") for verb in VERBS}
    lines = [f"  {verb:<10} {text}" for verb, text in about.items()]
    usage = started_as("VERB")
    head = [f"usage: {usage} CONFIG.yaml [dotted.key=value ...]", f"       {usage} --help   shows its settings", ""]
    return "\n".join([*head, *lines])


def unknown_verb(verb: str) -> str:
    """The answer to a verb that does not exist."""
    near = difflib.get_close_matches(verb, VERBS, n=1)
    return f"{verb}: no such verb{f' (did you mean {near[0]}?)' if near else ''}; legal: {', '.join(VERBS)}"


def help_of(verb: str) -> str:
    """What a verb does, and every setting that it reads."""
    about = inspect.getdoc(module_of(verb)) or ""
    shown = {**SECTIONS, "start": TRAIN}.get(verb, sections())
    return f"{about}\n\nSettings (section.key=value on the command line replaces the file's):\n\n{help_text(*shown)}"
