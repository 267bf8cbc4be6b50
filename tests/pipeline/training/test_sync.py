"""A run ends FINISHED only if MLflow holds what it took; `jobs.sync` brings it what is left and the right status, without Ray."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import ray
from mlflow import MlflowClient

from jobs import sync as verb
from jobs.cli import answering
from pipeline.config.load import override
from pipeline.data.manifest import read_manifest
from pipeline.errors import LeaseError, TrackingError
from pipeline.evaluation.metrics import Score
from pipeline.evaluation.protocol import validation_protocol
from pipeline.storage.lease import Claim
from pipeline.storage.store import open_store
from pipeline.tracking import runs
from pipeline.training import metric_logs
from pipeline.training.best import record_end
from pipeline.training.checkpointing import RunRecord
from pipeline.training.run import Run
from pipeline.training.sync import UNFINISHED, sync
from tests.pipeline.tracking.test_metric_log import NOWHERE, PICTURE
from tests.support import untrained
from tests.support.faulty_store import FaultyStore
from tests.support.holder import holder
from tests.support.mlflow_server import MlflowServer

POINTS = 50


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultyStore]:
    """The way to the server, which may lie."""
    with FaultyStore(mlflow_server.uri) as proxy:
        yield proxy


def trained(folder: Path, uri: str, steps: int = 1) -> Run:
    """A run of one step, of which nothing has reached MLflow but its start."""
    (folder / "scratch").mkdir()
    made = override(untrained.make(folder / "storage", folder / "scratch"), {
        "train.steps": steps, "tracking.uri": uri, "tracking.experiment": folder.name, "tracking.log_model": False,
        "tracking.register_as": None,
    })  # fmt: skip
    store = open_store(f"{made.runs_url}/{made.run_key}", made.storage)
    manifest = read_manifest(open_store(made.data_url, made.storage))
    k = len(manifest.class_names)
    counts, borders = np.eye(k, dtype=int) + 1, np.ones((2, k), int)
    score = Score(counts.tolist(), manifest.class_names, 10, validation_protocol(made, manifest), borders.tolist())
    untrained.store_checkpoint(made, folder / "scratch", score=score._asdict(), record=RunRecord().json())
    run = Run(made, manifest, store, uri, runs.open_mlflow_run(made, environment={}), Claim(store, ""))
    leave_points(run)
    return run


def leave_points(run: Run) -> None:
    """Leaves points, a picture and a point that MLflow refuses in the run's folder."""
    log = metric_logs.open_log(run._replace(tracking_uri=NOWHERE))
    for step in range(POINTS):
        log.metrics({"train/loss": float(step)}, step)
    log.picture("panel", 1, PICTURE)
    log.add([(1, 1, "no?", 1.0, None)])
    assert log.close(timeout_s=0) == POINTS + 2


def losses(run: Run) -> list[tuple[int, float]]:
    points = MlflowClient(run.tracking_uri).get_metric_history(run.run_id, "train/loss")
    return sorted((point.step, point.value) for point in points)


def status(run: Run) -> str:
    return str(MlflowClient(run.tracking_uri).get_run(run.run_id).info.status)


EACH_ONCE = [(step, float(step)) for step in range(POINTS)]


@pytest.mark.slow
def test_a_training_whose_driver_died_at_its_end_is_recorded_without_ray(
    mlflow_server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, mlflow_server.uri)
    assert verb.run(run.config) == 0
    shown = capsys.readouterr().out
    assert f"sent              {POINTS} metric points, 1 pictures\n" in shown
    assert "refused           metric no?: " in shown
    assert f"1 points and pictures, kept in {run.checkpoints.url('metrics')}" in shown
    assert "status            RUNNING -> FINISHED\n" in shown
    found = MlflowClient(run.tracking_uri).get_run(run.run_id)
    assert (found.info.status, found.data.tags["ccnet.step"]) == ("FINISHED", "1")
    assert "val/miou" in found.data.metrics
    assert "mlflow.note.content" in found.data.tags
    assert losses(run) == EACH_ONCE
    files = {file.path for file in MlflowClient(run.tracking_uri).list_artifacts(run.run_id)}
    assert {"panel.png", "report.html"} <= files

    assert verb.run(run.config) == 0
    shown = capsys.readouterr().out
    assert "sent              nothing was left\n" in shown
    assert "refused           metric no?: " in shown, "it is tried again and named again"
    assert "status            FINISHED\n" in shown
    assert losses(run) == EACH_ONCE
    assert not ray.is_initialized()
    kinds = sorted(key.partition("-")[0] for key in run.checkpoints.list("metrics"))
    assert kinds == ["metrics/refused", "metrics/sent"]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("RUNNING", "KILLED"), ("FAILED", "FAILED")])
def test_a_training_that_is_not_complete_is_not_running_if_nobody_trains_it(
    mlflow_server: MlflowServer, tmp_path: Path, before: str, after: str
) -> None:
    run = trained(tmp_path, mlflow_server.uri, steps=5)
    MlflowClient(run.tracking_uri).set_terminated(run.run_id, before)
    found = sync(run.config)
    assert (found.before, found.status, status(run)) == (before, after, after)
    tags = MlflowClient(run.tracking_uri).get_run(run.run_id).data.tags
    assert tags.get(runs.STOP_REASON) == (UNFINISHED if after == "KILLED" else None)
    assert losses(run) == EACH_ONCE


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_refused_and_one_that_is_not_there_named(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = trained(tmp_path, mlflow_server.uri)
    with (
        holder(run.checkpoints.root) as driver,
        pytest.raises(LeaseError, match=f"in use by process {driver.pid} on host"),
    ):
        sync(run.config)
    assert (status(run), losses(run)) == ("RUNNING", [])

    MlflowClient(run.tracking_uri).delete_run(run.run_id)
    with pytest.raises(TrackingError, match=r"MLflow has no run of it \(deleted, or another server\); python -m jobs.train"):
        sync(run.config)
    with pytest.raises(TrackingError, match="no such run, in MLflow or in"):
        sync(override(run.config, {"name": "other"}))


def test_a_server_that_is_away_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scratch").mkdir()
    away = override(untrained.make(tmp_path / "storage", tmp_path / "scratch"), {"tracking.uri": NOWHERE})
    assert answering(lambda: verb.run(away)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tracking.uri = {NOWHERE}: no MLflow server answers there")


@pytest.mark.slow
@pytest.mark.parametrize("lie", ["log-batch ", "runs/update "])
def test_a_run_does_not_end_finished_on_a_server_that_confirms_and_stores_nothing(
    proxy: FaultyStore, tmp_path: Path, lie: str
) -> None:
    run = trained(tmp_path, proxy.endpoint)
    proxy.aimed[lie] = "forget"
    said = r"lacks \d+ of \d+ metric points that the server has taken, the first one \S+ at step \d+: run the same command again"
    with pytest.raises(TrackingError, match="is still RUNNING, although" if "update" in lie else said):
        record_end(run, None)
    assert status(run) == "RUNNING"
    proxy.aimed.clear()
    record_end(run, None)
    assert status(run) == "FINISHED"
    assert losses(run) == EACH_ONCE


@pytest.mark.slow
def test_what_the_server_has_lost_is_sent_again_from_the_run_s_folder(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run = trained(tmp_path, mlflow_server.uri)
    record_end(run, None)
    with closing(sqlite3.connect(mlflow_server.folder / "mlflow.db")) as database, database:  # as from an older backup
        for table in ("metrics", "latest_metrics"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ? AND step > 20", (run.run_id,))
    (panel,) = [file for file in (mlflow_server.folder / "artifacts").rglob("panel.png") if run.run_id in str(file)]
    panel.unlink()
    with pytest.raises(TrackingError, match="lacks"):
        metric_logs.confirm(run)
    sent = sync(run.config).sent
    assert sent.points > POINTS - 21
    assert losses(run) == EACH_ONCE
    assert panel.exists()


@pytest.mark.slow
def test_a_new_server_gets_all_points_from_the_run_s_folder(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run = trained(tmp_path, mlflow_server.uri)
    record_end(run, None)
    elsewhere = override(run.config, {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"})
    run_id = runs.open_mlflow_run(elsewhere, environment={})
    moved = run._replace(config=elsewhere, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", run_id=run_id)
    record_end(moved, None)
    assert (status(moved), losses(moved)) == ("FINISHED", EACH_ONCE)
    assert "panel.png" in {file.path for file in MlflowClient(moved.tracking_uri).list_artifacts(run_id)}
