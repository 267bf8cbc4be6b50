"""Models that MLflow names: a run, a registered version."""

from pathlib import Path

import pytest

import ccnet
from pipeline.config.load import parse
from pipeline.errors import ModelError
from pipeline.tracking import registry, runs
from tests.support.delivered import CLASSES, delivered

CONFIG = {
    "name": "t",
    "data": {"name": "g", "layout": "generated", "crop_size": 33},
    "model": {"backbone": "small", "recurrence": 2},
}


@pytest.mark.slow
def test_a_run_and_a_version_are_loaded_as_long_as_the_folder_holds_their_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", delivered(tmp_path / "model")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = parse(CONFIG | {"storage": {"path": str(tmp_path)}})
    run_id = runs.open_mlflow_run(config, environment={})
    facts = {"checkpoint_url": "/runs/a/step-000040", "miou": 0.5, "protocol": {}}
    registry.log_best(uri, run_id, **facts, step=40, sha256="a" * 64)
    with pytest.raises(ModelError, match=f"{run_id}: its run delivered no model: run jobs.train again"):
        ccnet.load(run_id)
    registry.log_best(uri, run_id, **facts, step=40, sha256="a" * 64, model_url=str(folder))
    assert ccnet.load(run_id, device="cpu").classes == tuple(CLASSES)
    registry.register(uri, run_id, "roads", **facts, sha256="b" * 64, model_url=str(folder))
    with pytest.raises(ModelError, match=f"^models:/roads/1: {folder} holds another checkpoint of this run since, of step 40: "):
        ccnet.load("models:/roads/1")
