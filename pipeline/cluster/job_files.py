"""What a job is sent: the code of this checkout and the files that its command names, and nothing else."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ClusterError
from pipeline.formatting import size

PACKAGES = ("ccnet", "infra", "jobs", "pipeline")
MOST_BYTES = 50 * 2**20
"""Ray itself takes 500 MiB, and a folder with that much Python code is not meant to be sent."""
LARGEST = 3


class Sent(NamedTuple):
    """What was gathered."""

    num_files: int
    num_bytes: int


def gather(root: Path, config: Path, modules: Iterable[str], into: Path) -> Sent:
    """Copies what a job needs from the checkout `root` to the new folder `into`.

    That is the Python files of our packages and of the folder itself, `config`, and the Python files of the user's `modules`
    (`name` or `name.part`). Only what is on this list is sent: what lies beside, as .env, keys, data or a stack, stays here.
    Raises ClusterError outside a checkout, and above `MOST_BYTES` with the largest files.
    """
    if missing := [name for name in PACKAGES if not (root / name).is_dir()]:
        raise ClusterError(f"{root}: is no checkout of this project (no folder {missing[0]}): submit from there")
    found = {*root.glob("*.py"), config}
    for package in {*PACKAGES, *(module.partition(".")[0] for module in modules)}:
        found |= set((root / package).rglob("*.py"))
    inside = sorted(path for path in found if path.resolve().is_relative_to(root.resolve()) and "__pycache__" not in path.parts)
    sizes = {path: path.stat().st_size for path in inside}
    if (total := sum(sizes.values())) > MOST_BYTES:
        largest = sorted(inside, key=lambda path: -sizes[path])[:LARGEST]
        named = ", ".join(f"{path.relative_to(root)} ({size(sizes[path])})" for path in largest)
        raise ClusterError(f"{root}: {size(total)} of code are to be sent, at most {size(MOST_BYTES)} may: largest are {named}")
    for path in inside:
        target = into / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return Sent(len(inside), total)
