"""Experiments of any name: a run is found again, and its artifacts lie in a folder of their own."""

from pathlib import Path

import pytest

from pipeline.tracking import runs
from pipeline.tracking.client import connect
from tests.pipeline.tracking.test_runs import settings

pytestmark = [
    pytest.mark.slow,
]

NAMES = ["..", ".", "../../up", "/abs", 'it\'s "50 %" #?&+[a]*{b}\\', "道路", " a ", "%2e%2e", "a" * 256]


def found_again(uri: str, name: str) -> str:
    """Opens the run of a configuration twice in this experiment; returns the address of its artifacts."""
    made = settings(uri, **{"tracking.experiment": name})
    run_id = runs.open_mlflow_run(made, environment={})
    assert runs.open_mlflow_run(made, environment={}) == run_id
    run = connect(uri).get_run(run_id)
    assert connect(uri).get_experiment(run.info.experiment_id).name == name
    assert "config.yaml" in [file.path for file in connect(uri).list_artifacts(run_id)]
    return str(run.info.artifact_uri)


def test_artifacts_of_any_experiment_lie_beside_the_database(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    for name in NAMES:
        found_again(f"sqlite:///{home}/mlflow.db", name)
    assert {file.relative_to(tmp_path).parts[:3] for file in tmp_path.rglob("config.yaml")} == {("deep", "home", "mlartifacts")}
    assert len(list(tmp_path.rglob("config.yaml"))) == len(NAMES)
