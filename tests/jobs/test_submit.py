"""`jobs.submit`: mistakes that are refused before anything is sent, and the job's command."""

from pathlib import Path

import pytest

from jobs import submit


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one configuration and no cluster."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "demo.yaml").touch()
    (tmp_path / "outside.yaml").touch()
    monkeypatch.chdir(work)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    return work


def test_the_command_is_the_verb_with_every_override_quoted() -> None:
    command = submit.entrypoint("train", "./demo.yaml", ["data.scale=[0.5, 2.0]", "name=a;b"])
    assert command == "python -m jobs.train demo.yaml 'data.scale=[0.5, 2.0]' 'name=a;b'"


def test_an_absolute_path_under_the_folder_becomes_relative(folder: Path) -> None:
    assert submit.entrypoint("predict", str(folder / "demo.yaml"), []) == "python -m jobs.predict demo.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "demo.yaml"], "trian: no such verb (did you mean train?); legal: prepare, plan, train"),
        (["train", "demos.yaml"], "demos.yaml: no such file (did you mean demo.yaml?)"),
        (["train", "../outside.yaml"], "../outside.yaml: must be under "),
        (
            ["train", "demo.yaml"],
            "no cluster to submit to: start one here with `python -m infra.stack up`, or set RAY_API_SERVER_ADDRESS",
        ),
        (["train"], "usage: python -m jobs.submit VERB CONFIG.yaml"),
        (["train", "demo.yaml", "--follow"], "usage: python -m jobs.submit VERB CONFIG.yaml"),
    ],
)
def test_a_mistake_is_explained_without_a_traceback(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.command(arguments) == 2
    assert message in capsys.readouterr().err
