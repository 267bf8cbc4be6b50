"""The data set and the origin of a run, against a real MLflow server."""

import json

import pytest

from pipeline.tracking import runs
from pipeline.tracking.client import connect
from pipeline.tracking.datasets import DataSet
from tests.pipeline.tracking.test_runs import ENVIRONMENT, settings
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow


def test_a_run_names_its_data_and_what_started_it(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, client = mlflow_server.uri, connect(mlflow_server.uri)
    monkeypatch.setenv("CCNET_COMMIT", "0123abc-dirty")
    monkeypatch.setenv("CCNET_USER", "ada")
    monkeypatch.setattr("sys.argv", ["/somewhere/jobs/train.py", "secret=1"])
    data = DataSet("toy", "ab12", "s3://bucket/data/toy", {"train": {"images": 4, "pixels": {"road": 7}}})
    run_id = runs.open_mlflow_run(settings(uri, name="origin"), environment=ENVIRONMENT, data=data)
    monkeypatch.setenv("CCNET_USER", "bob")
    assert runs.open_mlflow_run(settings(uri, name="origin"), environment=ENVIRONMENT, data=data) == run_id
    run = client.get_run(run_id)
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, found.dataset.source_type) == ("toy", "ab12", "s3")
    assert json.loads(found.dataset.profile)["train"]["pixels"] == {"road": 7}
    (listed,) = client.search_runs([run.info.experiment_id], "dataset.name = 'toy' AND tags.`ccnet.run_key` LIKE 'origin-%'")
    assert listed.info.run_id == run_id
    origin = {name: run.data.tags[name] for name in runs.ORIGIN}
    assert origin == {
        "mlflow.source.name": "jobs/train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "0123abc",
        "mlflow.user": "ada",
    }
    child = runs.open_mlflow_run(settings(uri, name="child"), environment=ENVIRONMENT, parent_run_id=run_id)
    assert {name: client.get_run(child).data.tags[name] for name in runs.ORIGIN} == origin
