"""The list of verbs, their help, and what a command line that starts nothing answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import usage
from jobs.__main__ import main
from jobs.reference import settings
from pipeline.config.load import load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "code", "stream", "text"),
    [
        (["jobs"], 0, "stdout", "usage: python -m jobs.VERB CONFIG.yaml [dotted.key=value ...]\n"),
        (["jobs", "trian", "a.yaml"], 2, "stderr", "trian: no such verb (did you mean train?); legal: start, prepare, plan, "),
        (["jobs", "train"], 2, "stderr", "usage: python -m jobs.train CONFIG.yaml [dotted.key=value ...]"),
        (["jobs.train"], 2, "stderr", "usage: python -m jobs.train CONFIG.yaml [dotted.key=value ...]"),
        (["jobs.predict", "--images"], 2, "stderr", "usage: python -m jobs.predict CONFIG.yaml"),
        (["jobs.plan", "--help"], 0, "stdout", "`python -m jobs.plan CONFIG.yaml [dotted.key=value ...] [--strict]`: a dry run"),
        (["jobs.train", "a.yaml", "-h"], 0, "stdout", "`python -m jobs.train CONFIG.yaml`: trains"),
        (
            ["jobs", "submit", "--help"],
            0,
            "stdout",
            "`python -m jobs.submit VERB CONFIG.yaml [dotted.key=value ...] [--detach]`: runs",
        ),
    ],
)
def test_a_command_line_without_a_configuration_is_answered_by_its_form(
    words: list[str], code: int, stream: str, text: str
) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, getattr(done, stream)[: len(text)]) == (code, text)


def test_the_list_names_every_verb_and_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[0] for line in lines] == list(usage.VERBS)
    assert all(len(line.split()) > 3 for line in lines)
    files = {file.stem for file in (ROOT / "jobs").glob("*.py")} - {"__init__", "__main__", "cli", "reference", "usage"}
    assert files == set(usage.VERBS)


def test_the_installed_command_names_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/bin/ccnet", "train"])
    assert main() == 2
    assert capsys.readouterr().err == "usage: ccnet train CONFIG.yaml [dotted.key=value ...]\n"


@pytest.mark.parametrize("verb", usage.SECTIONS)
def test_help_shows_every_setting_of_the_verb(verb: str) -> None:
    text = usage.help_of(verb)
    for setting in (setting for section in usage.SECTIONS[verb] for setting in settings(section)):
        assert f"\n  {setting.key}  (" in text
        assert setting.description.split()[0] in text


def test_help_and_the_answer_to_a_typo_import_nothing_heavy() -> None:
    script = """
import json, sys
from jobs.__main__ import main
codes = [main(["train", "--help"])]
assert not {"pydantic", "yaml"} & {*sys.modules}
codes.append(main(["train", "jobs/configs/demo.yaml", "trian.steps=3"]))
print(json.dumps([codes, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    typo, answer = done.stderr.splitlines()
    codes, modules = json.loads(answer)
    assert codes == [0, 2]
    assert typo.startswith("trian = {'steps': 3}: no such setting (did you mean train?)")
    assert not {"torch", "ray", "pyarrow", "mlflow", "numpy", "cv2", "matplotlib"} & {*modules}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_printed_configuration_gives_the_same_one(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["config", str(path), "seed=7", "tracking.experiment=no"]) == 0
    text = capsys.readouterr().out
    config = load(path, ["seed=7", "tracking.experiment=no"])
    assert text.startswith(f"# run key  {config.run_key}\n# run      {config.runs_url}/{config.run_key}\n# model    ")
    assert f"\nname: {config.name}\nseed: 7\n" in text
    (tmp_path / "printed.yaml").write_text(text)
    assert load(tmp_path / "printed.yaml") == config
