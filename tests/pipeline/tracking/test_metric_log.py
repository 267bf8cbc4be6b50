"""Points and pictures arrive exactly once, even if the server, the training or both die."""

import logging
import math
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.tracking import metric_log, runs
from pipeline.tracking.client import connect
from pipeline.tracking.metric_log import MetricLog
from tests.pipeline.tracking.test_runs import ENVIRONMENT, settings
from tests.support.mlflow_server import MlflowServer

NOWHERE = "http://127.0.0.1:9"
PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def uri(mlflow_server: MlflowServer) -> str:
    return mlflow_server.uri


@pytest.fixture
def run_id(uri: str, request: pytest.FixtureRequest) -> str:
    return runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT, run_key=request.node.name)


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    points = connect(uri).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def pictures(uri: str, run_id: str, name: str) -> list[str]:
    return [Path(entry.path).name for entry in connect(uri).list_artifacts(run_id, name)]


def records(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    """The result of a statement on the only database in the folder."""
    (file,) = folder.glob("*.db")
    with closing(sqlite3.connect(file)) as database, database:
        return database.execute(statement).fetchall()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_a_server_training_continues_and_records_stay_on_disk(tmp_path: Path) -> None:
    log = MetricLog(NOWHERE, "a" * 32, tmp_path)
    start = time.monotonic()
    for step in range(1000):
        log.metrics({"train/loss": 1.0, "val/IoU (Café)": math.inf}, step)
    log.picture("panel", 999, PICTURE)
    assert time.monotonic() - start < 1
    assert log.close(timeout_s=0.1) == 2001
    assert records(tmp_path, "SELECT key, value FROM record WHERE step = 7") == [("train/loss", 1.0), ("val/IoU _Caf__", None)]
    assert records(tmp_path, "SELECT key FROM record WHERE picture IS NOT NULL") == [("panel",)]


def test_a_full_disk_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricLog(NOWHERE, "b" * 32, tmp_path)
    (used,) = log._records.execute("PRAGMA page_count").fetchone()
    log._records.execute(f"PRAGMA max_page_count = {used}")  # SQLite then raises the same error as for a full disk
    with caplog.at_level(logging.WARNING):
        for step in range(1, 500):
            log.metrics({"loss": 1.0}, step)
    assert "wait in memory: database or disk is full" in caplog.text
    log._records.execute("PRAGMA max_page_count = 100000")
    log.metrics({"loss": 2.0}, 500)
    assert log.close(timeout_s=0.1) == 500
    assert records(tmp_path, "SELECT count(*) FROM record") == [(500,)]


def test_a_damaged_database_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"{'d' * 32}.db").write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.WARNING):
        log = MetricLog(NOWHERE, "d" * 32, tmp_path)
    log.metrics({"loss": 1.0}, 1)
    assert log.close(timeout_s=0.1) == 1
    assert "is damaged" in caplog.text
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


@pytest.mark.slow
def test_every_value_arrives(uri: str, run_id: str, tmp_path: Path) -> None:
    log = MetricLog(uri, run_id, tmp_path)
    for step in range(1500):
        log.metrics({"train/loss": 1 / (step + 1), "train/lr": 0.1}, step)
    log.metrics({"nan": math.nan, "inf": math.inf}, 0)
    log.picture("val/panel", 10, PICTURE)
    assert log.close() == 0
    assert history(uri, run_id, "train/loss") == [(step, 1 / (step + 1)) for step in range(1500)]
    assert math.isnan(history(uri, run_id, "nan")[0][1])
    assert math.isnan(history(uri, run_id, "inf")[0][1])
    assert pictures(uri, run_id, "val/panel") == ["step_000010.png"]
    assert pictures(uri, run_id, "val") == ["panel", "panel.png"]
    assert records(tmp_path, "SELECT count(*), sum(sent), sum(length(picture)) FROM record") == [(3003, 3003, 0)]


@pytest.mark.slow
def test_points_logged_while_the_server_is_down_arrive_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # no retries in MLflow's client: the sender thread tries again
    with MlflowServer(tmp_path) as server:
        run_id = runs.open_mlflow_run(settings(server.uri), environment=ENVIRONMENT)
        log = MetricLog(server.uri, run_id, tmp_path / "spool")
        log.metrics({"loss": 0.0}, 0)
        server.stop()
        for step in range(1, 50):
            log.metrics({"loss": float(step)}, step)
        log.picture("panel", 49, PICTURE)
        wait_for(lambda: "trying again" in caplog.text)  # the sender has failed once
        server.start()
        log.metrics({"loss": 50.0}, 50)
        assert log.close(timeout_s=90) == 0
        assert history(server.uri, run_id, "loss") == [(step, float(step)) for step in range(51)]
        assert pictures(server.uri, run_id, "panel") == ["step_000049.png"]


@pytest.mark.slow
def test_a_killed_training_resumes_without_a_gap_or_a_repeated_point(uri: str, run_id: str, tmp_path: Path) -> None:
    code = f"""
import time, numpy
from pathlib import Path
from pipeline.tracking.metric_log import MetricLog
folder = Path({str(tmp_path)!r})
log = MetricLog({uri!r}, {run_id!r}, folder)
for step in range(1, 401):
    log.metrics({{"loss": 1 / step}}, step)
    if step % 100 == 0:
        log.picture("panel", step, numpy.zeros((8, 8, 3), "uint8"))
    while step == 150 and not log._records.execute("SELECT count(*) FROM record WHERE sent").fetchone()[0]:
        time.sleep(0.01)
print("done", flush=True)
time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()

    log = MetricLog(uri, run_id, tmp_path)  # resumed from the checkpoint of step 300
    for step in range(301, 501):
        log.metrics({"loss": 1 / step}, step)
        if step % 100 == 0:
            log.picture("panel", step, PICTURE)
    assert log.close() == 0
    assert history(uri, run_id, "loss") == [(step, 1 / step) for step in range(1, 501)]
    assert pictures(uri, run_id, "panel") == [f"step_{step:06d}.png" for step in (100, 200, 300, 400, 500)]


@pytest.mark.slow
def test_a_gap_left_on_another_machine_is_filled_when_its_records_come(uri: str, run_id: str, tmp_path: Path) -> None:
    lost = MetricLog(NOWHERE, run_id, tmp_path / "first")
    for step in range(1, 6):
        lost.metrics({"loss": float(step)}, step)
    assert lost.close(timeout_s=0.1) == 5
    other = MetricLog(uri, run_id, tmp_path / "second")  # resumed on another node from step 3
    for step in range(4, 8):
        other.metrics({"loss": float(step)}, step)
    assert other.close() == 0
    assert MetricLog(uri, run_id, tmp_path / "first").close() == 0
    assert history(uri, run_id, "loss") == [(step, float(step)) for step in range(1, 8)]


@pytest.mark.slow
def test_replay_of_points_whose_answer_was_lost_repeats_nothing(uri: str, run_id: str, tmp_path: Path) -> None:
    log = MetricLog(NOWHERE, run_id, tmp_path)
    log.metrics({"loss": 1.0}, 1)
    log.close(timeout_s=0.1)
    for _ in range(2):
        records(tmp_path, "UPDATE record SET sent = 0")  # as if killed after the points were sent, before they were marked
        assert MetricLog(uri, run_id, tmp_path).close() == 0
    client = connect(uri)
    point = metric_log.Point("twice", 2.0, 1_700_000_000_000, 1)
    metric_log.send_points(client, run_id, [point])
    metric_log.send_points(client, run_id, [point])
    assert history(uri, run_id, "loss") == [(1, 1.0)]
    assert history(uri, run_id, "twice") == [(1, 2.0)]


def test_default_folder_is_in_the_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    MetricLog(NOWHERE, "c" * 32).close(timeout_s=0)
    assert (tmp_path / "ccnet-spool" / f"{'c' * 32}.db").is_file()
