"""`jobs.serve`: what is refused before anything starts."""

import socket
from pathlib import Path

import pytest

from jobs.serve import command
from tests.support.delivered import delivered


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "the following arguments are required: MODEL"),
        (["m", "--port", "0"], "0: must be at least 1"),
        (["m", "--port", "x"], "argument --port: invalid"),
        (["m", "--replica", "0"], "0: must be at least 1"),
        (["m", "more"], "unrecognized arguments: more"),
    ],
)
def test_a_wrong_command_line_is_answered_by_its_form(words: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(words) == 2
    assert answer in capsys.readouterr().err


def test_what_would_fail_or_let_anybody_in_is_refused_before_a_cluster_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CCNET_SERVE_TOKEN", raising=False)
    model = str(delivered(tmp_path / "model"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert command([model, "--port", port]) == 1
        assert f"--port {port}: Address already in use: choose another --port" in capsys.readouterr().err
    assert command([model, "--host", "0.0.0.0"]) == 1
    assert "--host 0.0.0.0: other machines could use the service: set CCNET_SERVE_TOKEN" in capsys.readouterr().err
    assert command([model, "--port", "70000"]) == 1
    assert "--port 70000: must be at most 65535" in capsys.readouterr().err
    assert command([str(tmp_path / "nothing"), "--port", port]) == 1
    assert "no model, which is a folder with model.json" in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--host", "--port", "--replicas", "--max-bytes", "--max-pixels", "--open"))
