"""The script for a GPU machine, as far as it can be looked at without one."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config.load import load

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "gpu" / "run.sh"


@pytest.fixture(scope="module")
def stages() -> list[list[str]]:
    """name, seconds and command of each stage."""
    done = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True)
    # The list has the arguments without their quotes; none holds a blank but the shape of the map.
    return [shlex.split(line.replace("[[8, 512, 97, 97]]", "[[8,512,97,97]]")) for line in done.stdout.splitlines()]


def test_the_stages_together_take_less_than_nine_minutes(stages):
    assert sum(int(seconds) for _, seconds, *_ in stages) <= 530  # beside it, Ray is unpacked


def test_correctness_comes_first_and_its_files_exist(stages):
    name, _, *command = stages[0]
    files = [argument for argument in command if argument.startswith("tests/")]
    assert name == "correctness"
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_every_benchmarks_settings_are_legal(stages, monkeypatch):
    monkeypatch.chdir(ROOT)
    measured = []
    for _, _, python, option, module, config, *overrides in stages[1:]:
        assert (python, option, module) == ("python3", "-m", "jobs.benchmark")
        measured += load(config, overrides).benchmark.of
    assert measured == ["operator", "network", "launchers"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script itself is the test then")
def test_without_a_gpu_it_says_so_and_runs_nothing(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OUT": str(tmp_path / "out")}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "no GPU here: nothing was run, the GPU's figures stay open\n")
    assert not (tmp_path / "out").exists()
