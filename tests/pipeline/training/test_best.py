"""What MLflow gets of a best checkpoint: a copy of the model where it takes one, and always the reference."""

import re
from pathlib import Path

import mlflow.pyfunc
import pytest

from pipeline.config.load import override
from pipeline.evaluation.evaluate import evaluate
from pipeline.fault_tolerance.goodput import ABOUT, Goodput
from pipeline.storage.lease import Claim
from pipeline.storage.store import open_store
from pipeline.tracking import runs
from pipeline.tracking.client import connect
from pipeline.training.best import deliver_best, description, record_best
from pipeline.training.run import Run
from tests.support import untrained

pytestmark = pytest.mark.slow


def test_mlflow_gets_no_copy_if_it_is_not_to_have_one_or_does_not_take_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "scratch").mkdir()
    made = untrained.make(tmp_path / "storage", tmp_path / "scratch")
    made = override(made, {"tracking.uri": uri, "tracking.register_as": "roads", "train.workers": 0})
    evaluation, client = evaluate(made), connect(uri)
    best, score = evaluation.checkpoint, evaluation.score
    store, run_id = open_store(f"{made.runs_url}/{made.run_key}", made.storage), runs.open_mlflow_run(made, environment={})
    run = Run(made, evaluation.manifest, store, uri, run_id, Claim(store, ""))
    folder = deliver_best(run, best, score)

    without = run._replace(config=override(made, {"tracking.log_model": False}))
    recorded = record_best(without, best, score, folder)
    assert (recorded["model_url"], recorded["model_id"]) == (folder.address, None)
    text = description(run, best, score, recorded, {})
    assert "mlflow.pyfunc" not in text
    assert "Goodput" not in text
    experiment = client.get_run(run_id).info.experiment_id
    assert not client.search_logged_models([experiment])
    assert client.get_model_version("roads", "1").source.startswith("runs:/")

    artifacts = next((tmp_path / "mlartifacts").iterdir())
    (artifacts / "models").write_text("no folder can be here")
    recorded = record_best(run, best, score, folder)
    assert recorded["model_id"] is None
    assert f"MLflow did not take a copy of the model ([Errno 20] Not a directory: '{artifacts}/models" in caplog.text
    assert client.get_run(run_id).data.tags["ccnet.checkpoint_url"] == best.url

    (artifacts / "models").unlink()
    recorded = record_best(run, best, score, folder)
    assert mlflow.pyfunc.load_model(f"{artifacts}/models/{recorded['model_id']}/artifacts")
    assert f'load_model("models:/{recorded["model_id"]}")' in description(run, best, score, recorded, {})
    spent = Goodput(stepping=90.0, lost=30.0, steps=60, worker_s=240.0).points(made)
    text = description(run, best, score, recorded, spent)
    assert "Goodput 75 % of 2 min stepping (lost 25%), " in text
    assert re.search(rf"^{ABOUT['lost']} +25\.0 % +30 s$", text, re.MULTILINE)
    assert text.index("mIoU  ") < text.index("Goodput"), "how good it is stands above what it cost"
    assert client.get_model_version("roads", "2").tags["ccnet.model_id"] == recorded["model_id"], "version 1 has no files"
    assert record_best(run, best, score, folder) == recorded
    assert len(client.search_model_versions("name = 'roads'")) == 2
    assert [model.model_id for model in client.search_logged_models([experiment])] == [recorded["model_id"]]
