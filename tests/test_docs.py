"""What the documentation shows runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_library_examples_run_as_they_stand() -> None:
    """The first two, one after the other; the third reads published weights."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "model.md").read_text(), re.DOTALL)[:2]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(examples)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    scores, *steps = [line.split() for line in done.stdout.splitlines()]
    assert len(scores) == 3
    assert [applied for _, _, applied in steps] == ["True", "True"]
