"""Models that MLflow stores: once each, linked to run, data and scores, loaded after the delivered folder is gone."""

import shutil
import time
from functools import partial
from pathlib import Path

import cv2
import mlflow.pyfunc
import numpy as np
import pytest

import ccnet
from pipeline.delivery import pyfunc
from pipeline.tracking import models, registry, runs
from pipeline.tracking.client import connect
from pipeline.tracking.datasets import DataSet
from tests.pipeline.tracking.test_runs import ENVIRONMENT, PROTOCOL, settings
from tests.support.delivered import NOISE, delivered
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow
SHA256 = "a" * 64


class Killed(BaseException):
    """Ends the storing of a model as a signal does."""


def entry(name: str, sha256: str = SHA256) -> models.Entry:
    return models.Entry(name, "# The card\n" + 1000 * "long card, ", sha256, 40, {"backbone": "small"}, ["val/miou", "val/gamma"])


def test_a_model_is_stored_once_with_its_scores_and_found_by_them(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, client, folder = mlflow_server.uri, connect(mlflow_server.uri), delivered(tmp_path / "model")
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    data = DataSet("toy-of-models", "cd34", "s3://bucket/data/toy", {})
    run_id = runs.open_mlflow_run(settings(uri, name="stored"), environment=ENVIRONMENT, run_key="stored", data=data)
    for step, miou in ((20, 0.25), (40, 0.5)):
        client.log_metric(run_id, "val/miou", miou, timestamp=1000 * step, step=step)

    def interrupted(path: Path, model_id: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        models.log_model(uri, run_id, entry("stored"), interrupted)

    write = partial(pyfunc.save, files=files, run_id=run_id)
    model_id = models.log_model(uri, run_id, entry("stored"), write)
    assert models.log_model(uri, run_id, entry("stored"), interrupted) == model_id, "it is there: nothing is written"
    run = client.get_run(run_id)
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert (model.model_id, model.status.name, model.name, model.params) == (model_id, "READY", "stored", {"backbone": "small"})
    (metric,) = model.metrics
    found = (metric.key, metric.value, metric.step, metric.dataset_name, metric.dataset_digest)
    assert found == ("val/miou", 0.5, 40, "toy-of-models", "cd34")
    assert [(point.step, point.value) for point in client.get_metric_history(run_id, "val/miou")] == [(20, 0.25), (40, 0.5)]
    assert [output.model_id for output in run.outputs.model_outputs] == [model_id]
    best = client.search_logged_models(
        [run.info.experiment_id],
        "metrics.`val/miou` > 0.4",
        datasets=[{"dataset_name": "toy-of-models", "dataset_digest": "cd34"}],
        order_by=[{"field_name": "metrics.val/miou", "ascending": False}],
    )
    assert [each.model_id for each in best] == [model_id]

    facts = {"checkpoint_url": "/runs/a/step-000040", "sha256": SHA256, "miou": 0.5, "protocol": PROTOCOL}
    facts |= {"model_url": str(folder), "model_id": model_id}
    registry.log_best(uri, run_id, step=40, **facts)
    registry.register(uri, run_id, "stored", card=entry("stored").card, **facts)
    version = client.get_model_version_by_alias("stored", "champion")
    assert (version.description[:10], version.source) == ("# The card", f"models:/{model_id}")
    expected = ccnet.load(folder, device="cpu").predict(NOISE)
    shutil.rmtree(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for address in (run_id, "models:/stored@champion", "models:/stored/1"):
        np.testing.assert_array_equal(ccnet.load(address, device="cpu").predict(NOISE), expected)
    mlflow.set_tracking_uri(uri)
    try:
        picture = bytes(cv2.imencode(".png", cv2.cvtColor(NOISE, cv2.COLOR_RGB2BGR))[1])
        mask = mlflow.pyfunc.load_model("models:/stored@champion").predict({"image": picture})["mask"][0]
    finally:
        mlflow.set_tracking_uri(None)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_UNCHANGED), expected)


def test_a_better_checkpoint_of_the_run_is_another_model(mlflow_server: MlflowServer) -> None:
    uri = mlflow_server.uri
    run_id = runs.open_mlflow_run(settings(uri, name="two"), environment=ENVIRONMENT, run_key="two")

    def write(path: Path, model_id: str) -> None:
        path.mkdir()
        (path / "MLmodel").write_text(f"model_id: {model_id}\ntime: {time.time()}\n")

    first, second, again = (models.log_model(uri, run_id, entry("two", sha256), write) for sha256 in "aba")
    assert first == again != second
