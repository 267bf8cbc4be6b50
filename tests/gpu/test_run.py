"""The script for a GPU machine, as far as it can be tested without a GPU."""

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
    """Name, time limit in seconds and command of each stage."""
    done = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True)
    # The list shows arguments without quotes; only the shape of the map contains blanks.
    return [shlex.split(line.replace("[[8, 512, 97, 97]]", "[[8,512,97,97]]")) for line in done.stdout.splitlines()]


def test_the_stages_together_take_less_than_nine_minutes(stages):
    assert sum(int(seconds) for _, seconds, *_ in stages) <= 530  # the rest is for unpacking Ray


def test_correctness_comes_first_and_its_files_exist(stages):
    name, _, *command = stages[0]
    files = [argument for argument in command if argument.startswith("tests/")]
    assert name == "correctness"
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_the_correctness_tests_need_nothing_that_a_gpu_machine_lacks(stages, tmp_path):
    """Whatever tests/conftest.py needs: MLflow, moto, Ray, beartype."""
    for name in ("mlflow", "moto", "ray", "beartype", "s3fs"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('there is no {name}')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "TRITON_INTERPRET": "1"}
    command = [sys.executable, *stages[0][3:], "--collect-only", "-p", "no:jaxtyping"]
    command = [word for word in command if word not in ("-n", "8")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "tests/ccnet/test_kernels.py::" in done.stdout


def test_every_benchmarks_settings_are_legal(stages, monkeypatch):
    monkeypatch.chdir(ROOT)
    measured = []
    for _, _, python, option, module, config, *overrides in stages[1:]:
        assert (python, option, module) == ("python3", "-m", "jobs.benchmark")
        measured += load(config, overrides).benchmark.of
    assert measured == ["operator", "network", "launchers"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script itself is the test")
def test_without_a_gpu_it_reports_that_and_runs_nothing(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OUT": str(tmp_path / "out")}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "no GPU here: nothing was run, nothing was measured\n")
    assert not (tmp_path / "out").exists()
