"""The measurement of `predict` against a bare loop runs and says what it found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_predict_and_a_bare_loop_are_measured_in_turns() -> None:
    # In a process of its own, because it starts and ends a cluster.
    command = [sys.executable, "-m", "tests.support.predict_speed", "8", "1", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    shown = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    bare, ours, last = shown.splitlines()[-3:]
    assert (bare[:10], ours[:8]) == ("bare loop:", "predict:")
    found = re.fullmatch(r"predict over bare loop: (\S+), with every start (\S+)", last)
    assert found
    assert all(float(ratio) > 0 for ratio in found.groups())
