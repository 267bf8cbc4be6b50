"""The registry under names of any kind, and flaws of a score, against a real MLflow server."""

import pytest

from pipeline.tracking import registry, runs
from pipeline.tracking.client import connect
from tests.pipeline.tracking.test_runs import ENVIRONMENT, PROTOCOL, settings
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow


def test_a_best_checkpoint_without_a_flaw_takes_the_flaw_of_the_one_before_away(mlflow_server: MlflowServer) -> None:
    uri = mlflow_server.uri
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT, run_key="flawed")
    facts = {"checkpoint_url": "s3://ccnet/1", "sha256": "1", "step": 1, "miou": 1.0, "protocol": PROTOCOL}
    registry.log_best(uri, run_id, **facts, flaw="its score covers 1 of 2 classes")
    assert connect(uri).get_run(run_id).data.tags["ccnet.flaw"] == "its score covers 1 of 2 classes"
    registry.log_best(uri, run_id, **facts)
    assert "ccnet.flaw" not in connect(uri).get_run(run_id).data.tags


@pytest.mark.parametrize("name", ['it\'s "q"', "道路 🚗", "a@b", "latest"])
def test_a_model_of_any_name_is_registered_and_found(mlflow_server: MlflowServer, name: str) -> None:
    uri = mlflow_server.uri
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT, run_key="names")
    facts = {"checkpoint_url": "s3://ccnet/1", "miou": 0.5, "protocol": PROTOCOL}
    assert [registry.register(uri, run_id, name, sha256=sha256, **facts) for sha256 in "112"] == ["1", "1", "2"]
    assert registry.find_checkpoint(uri, f"models:/{name}@best").sha256 == "1"
    assert registry.find_checkpoint(uri, f"models:/{name}/2").sha256 == "2"
    connect(uri).delete_model_version(name, "1")  # and the alias with it
    registry.register(uri, run_id, name, sha256="3", **facts)
    assert registry.find_checkpoint(uri, f"models:/{name}@best").sha256 == "3"
