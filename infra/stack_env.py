"""Reads the variables with which commands, drivers and tests reach a local stack. Imports no Ray."""

import shlex
from pathlib import Path

DEFAULT_ROOT = Path(".stack")


def environment(root: Path = DEFAULT_ROOT) -> dict[str, str]:
    """The variables of `root/env`. Raises FileNotFoundError if there is no stack.

    Ray reads RAY_AUTH_MODE at its first import: set the variables in os.environ before it, or start a process with them.
    """
    lines = (root / "env").read_text().splitlines()
    pairs = (shlex.split(line.removeprefix("export "))[0].partition("=") for line in lines)
    return {key: value for key, _, value in pairs}
