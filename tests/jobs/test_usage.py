"""A command line that starts nothing says how one is written."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "code", "stream", "text"),
    [
        (
            ["jobs"],
            2,
            "stderr",
            "usage: python -m jobs.VERB CONFIG.yaml [dotted.key=value ...]; VERB is one of benchmark, evaluate, ",
        ),
        (["jobs", "train", "a.yaml"], 2, "stderr", "usage: python -m jobs.VERB CONFIG.yaml"),
        (["jobs.train"], 2, "stderr", "usage: python -m jobs.train CONFIG.yaml [dotted.key=value ...]"),
        (["jobs.predict", "--images"], 2, "stderr", "usage: python -m jobs.predict CONFIG.yaml"),
        (["jobs.plan", "--help"], 0, "stdout", "`python -m jobs.plan CONFIG.yaml [dotted.key=value ...] [--strict]`: a dry run"),
        (["jobs.train", "a.yaml", "-h"], 0, "stdout", "`python -m jobs.train CONFIG.yaml`: trains"),
    ],
)
def test_a_command_line_without_a_configuration_is_answered_by_its_form(
    words: list[str], code: int, stream: str, text: str
) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, getattr(done, stream)[: len(text)]) == (code, text)
