"""Another process that holds a folder."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOLDING = """
import sys, time
from pipeline.storage.lease import held
from pipeline.storage.store import Store
with held(Store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that has the lease of a folder; it is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", HOLDING, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
