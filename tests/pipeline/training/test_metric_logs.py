"""What MLflow did not take waits in the run's folder and on the nodes' disks, and the next start sends it."""

import threading
from pathlib import Path
from typing import Any, cast

import pytest
from mlflow import MlflowClient

from pipeline.config.load import load
from pipeline.data.prepare import prepare
from pipeline.images.codec import encode_png
from pipeline.storage.lease import Claim
from pipeline.storage.store import Store
from pipeline.tracking import runs
from pipeline.tracking.spool import unpack
from pipeline.training import metric_logs
from pipeline.training.run import Run
from pipeline.training.train import train
from tests.pipeline.tracking.test_metric_log import NOWHERE, PICTURE, pictures
from tests.pipeline.tracking.test_runs import settings
from tests.pipeline.training.test_validation import DEMO, TINY
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def run_at(folder: Path, uri: str, run_id: str) -> Run:
    store = Store(str(folder / "runs"))
    return Run(cast(Any, None), cast(Any, None), store, uri, run_id, Claim(store, ""))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def history(uri: str, run_id: str, key: str) -> dict[int, float]:
    return {point.step: point.value for point in MlflowClient(uri).get_metric_history(run_id, key)}


def test_the_run_s_folder_keeps_what_a_process_could_not_send(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_at(tmp_path, NOWHERE, "a" * 32)
    log = metric_logs.open_log(run)
    log.metrics({"val/miou": 0.5}, 4)
    assert log.close(timeout_s=0.1) == 1
    (key,) = run.checkpoints.list("metrics")
    assert f"are kept in {run.checkpoints.url(key)}: the next start of the run sends them" in caplog.text
    assert not list(tmp_path.glob("ccnet-metrics-*/*"))


class Slow(Store):
    """A folder that takes nothing until it is told to, and never what is called `refused`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.opened = threading.Event()

    def write(self, key: str, data: bytes) -> None:
        assert self.opened.wait(30)
        if "refused" in key:
            raise OSError("no space")
        super().write(key, data)


def test_a_slow_store_holds_up_no_picture_and_gets_the_newest_of_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Slow(tmp_path / "runs")
    copies = metric_logs.Copies(store)
    assert copies.wait(0)
    for number in range(5):
        copies.add("panel", bytes([number]))
        copies.add("refused", bytes([number]))
    assert not copies.wait(0.1)
    store.opened.set()
    assert copies.wait(30)
    assert [(key, store.read(key)) for key in store.list("pictures")] == [("pictures/panel.png", bytes([4]))]
    assert "the picture refused is in MLflow only: no space" in caplog.text
    copies.add("panel", b"later")
    assert copies.wait(30)
    assert store.read("pictures/panel.png") == b"later"


@pytest.mark.slow
def test_a_copy_of_each_picture_is_passed_on(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    uri = mlflow_server.uri
    run_id = runs.open_mlflow_run(settings(uri), environment={}, run_key="copies")
    kept: list[tuple[str, bytes]] = []
    log = metric_logs.MetricLog(uri, run_id, tmp_path, copy=lambda name, png: kept.append((name, png)))
    for name, step in (("panel", 1), ("attention", 1), ("panel", 2)):
        log.picture(name, step, PICTURE)
    assert log.close() == 0
    assert kept == [(name, encode_png(PICTURE)) for name in ("panel", "attention", "panel")]
    assert pictures(uri, run_id, "panel") == ["step_000001.png", "step_000002.png"]


def test_what_a_killed_process_left_on_a_node_goes_to_the_run_s_folder(tmp_path: Path) -> None:
    run = run_at(tmp_path, NOWHERE, "a" * 32)
    killed = metric_logs.MetricLog(NOWHERE, run.run_id)
    killed.metrics({"val/miou": 0.5}, 4)
    killed.close(timeout_s=0.1)
    assert list(tmp_path.glob("ccnet-metrics-*/*.db"))
    log = metric_logs.open_log(run)
    assert log.close(timeout_s=0.1) == 1
    assert not list(tmp_path.glob("ccnet-metrics-*/*"))
    assert len(run.checkpoints.list("metrics")) == 1


@pytest.mark.slow
def test_scores_and_pictures_of_a_validation_on_another_node_arrive(local_ray: None, tmp_path: Path) -> None:
    """Each process has its own disk and no MLflow; a damaged file of records does not hold up the others."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = runs.open_mlflow_run(settings(uri), environment={})
    away = run_at(tmp_path, NOWHERE, run_id)
    for step in (4, 8):
        log = metric_logs.open_log(away)
        log.metrics({"val/miou": step / 10}, step)
        log.picture("panel", step, PICTURE)
        assert log.close(timeout_s=0.1) == 2
    away.checkpoints.write("metrics/unsent-damaged.db", b"no database" * 100)
    assert metric_logs.send_unsent(away, {12: {"val/miou": 1.2}}) == 5
    run = run_at(tmp_path, uri, run_id)
    assert metric_logs.send_unsent(run, {8: {"val/miou": 0.8}, 16: {"val/miou": 1.6}}) == 0
    assert history(uri, run_id, "val/miou") == {4: 0.4, 8: 0.8, 12: 1.2, 16: 1.6}
    assert len(MlflowClient(uri).get_metric_history(run_id, "val/miou")) == 4
    assert len(MlflowClient(uri).list_artifacts(run_id, "panel")) == 2
    sent, damaged = sorted(run.checkpoints.list("metrics"))
    assert damaged == "metrics/unsent-damaged.db"
    assert {row[1] for row in unpack(run.checkpoints.read(sent))} == {4, 8, 12, 16}
    assert not list(tmp_path.glob("ccnet-metrics-*/*"))


@pytest.mark.slow
def test_a_run_that_was_deleted_in_mlflow_is_recorded_again_and_nothing_waits(
    local_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = [*TINY, "train.steps=4", "evaluate.background=true", f"storage.path={tmp_path}/out"]
    config = load(DEMO, [*options, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"])
    prepare(config)
    first = train(config)
    client = MlflowClient(first.tracking_uri)
    client.log_metric(first.run_id, "system/cpu_utilization_percentage", 50.0, step=2_000_000_000)  # its step is a time
    metrics = client.get_run(first.run_id).data.metrics
    assert metrics["val/miou"] == first.score.miou
    assert not list(tmp_path.glob("ccnet-metrics-*/*"))
    client.delete_run(first.run_id)
    again = train(config)
    run = client.get_run(again.run_id)
    assert (run.info.status, run.data.tags["ccnet.earlier_run"]) == ("FINISHED", first.run_id)
    assert run.data.metrics == metrics
    assert f"MLflow run {first.run_id}, which recorded the first 4 steps, was deleted" in caplog.text
