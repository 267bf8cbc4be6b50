"""`python -m tests.mutations [NAME ...]`: makes each mutation in a copy of this folder and checks that its test fails."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.mutations.mutations import MUTATIONS, ROOT, Mutation


class Tested(NamedTuple):
    """The result of a pytest run."""

    code: int
    output: str
    seconds: float


def copy_files(target: Path) -> None:
    """Copies the files that git tracks or would track, with uncommitted changes."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).exists():  # otherwise its deletion is not committed yet
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def tested(folder: Path, tests: Iterable[str]) -> Tested:
    """Runs tests of the copy `folder/tree` until one fails, then ends all processes that they leave."""
    started, output, tree = time.monotonic(), folder / "output", folder / "tree"
    # PYTHONPATH precedes the installed packages, which are those of ROOT. Bytecode would keep a mutation.
    own = {"PYTHONPATH": str(tree), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", *dict.fromkeys(tests)]
    try:
        with output.open("w") as file:  # not a pipe, which a remaining process would keep open
            code = subprocess.run(command, cwd=tree, env=os.environ | own, stdout=file, stderr=file, check=False).returncode
    finally:
        while left := processes_of(folder):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
    return Tested(code, output.read_text(errors="replace"), time.monotonic() - started)


def processes_of(folder: Path) -> list[int]:
    """Ids of the processes whose TMPDIR is this folder; children inherit it in every session."""
    found, variable = [], f"TMPDIR={folder}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended since, or is another user's
            if entry.name.isdigit() and variable in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def is_caught(folder: Path, mutation: Mutation) -> bool:
    """Whether the test itself fails under the mutation, and not an import, the collection or a fixture. Prints the result."""
    file = folder / "tree" / mutation.file
    whole = file.read_text()
    file.write_text(mutation.applied(whole))
    try:
        found = tested(folder, [mutation.test])
    finally:
        file.write_text(whole)
    caught = found.code == 1 and f"FAILED {mutation.test}" in found.output
    verdict = "caught" if caught else "NOT CAUGHT"
    print(f"{mutation.name:27} {verdict} by {mutation.test} in {found.seconds:.1f} s", flush=True)
    if not caught:
        print(f"pytest ended with exit code {found.code}:\n{found.output[-3000:]}", flush=True)
    return caught


def main(names: list[str]) -> int:
    legal = [mutation.name for mutation in MUTATIONS]
    if unknown := [name for name in names if name not in legal]:
        print(f"{', '.join(unknown)}: no such mutation; legal: {', '.join(legal)}", file=sys.stderr)
        return 2
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        folder = Path(name)
        copy_files(folder / "tree")
        whole = tested(folder, [mutation.test for mutation in chosen])
        if whole.code:
            print(f"without a mutation pytest ended with exit code {whole.code}:\n{whole.output[-3000:]}")
            return 1
        print(f"{'no mutation':27} the tests pass in {whole.seconds:.1f} s", flush=True)
        num_caught = sum([is_caught(folder, mutation) for mutation in chosen])
    print(f"{num_caught} of {len(chosen)} mutations caught")
    return 0 if num_caught == len(chosen) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and copies are cleaned up
    sys.exit(main(sys.argv[1:]))
