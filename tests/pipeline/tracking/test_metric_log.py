"""Points and pictures arrive exactly once, even if the server, the training or both die."""

import logging
import math
import signal
import socket
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

from pipeline.images.codec import encode_png
from pipeline.tracking import metric_log, runs, spool
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
    assert records(tmp_path, "SELECT key, value FROM record WHERE step = 7") == [
        ("train/loss", 1.0),
        ("val/IoU _Café_-fcb66144", None),
    ]
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
    assert not list(tmp_path.glob("*"))  # nothing waits, so nothing stays


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
    file = tmp_path / f"{run_id}.db"
    before = file.read_bytes()
    for _ in range(2):
        file.write_bytes(before)  # as if killed after the points were sent, before they were marked
        assert MetricLog(uri, run_id, tmp_path).close() == 0
    client = connect(uri)
    point = metric_log.Point("twice", 2.0, 1_700_000_000_000, 1)
    metric_log.send_points(client, run_id, [point])
    metric_log.send_points(client, run_id, [point])
    assert history(uri, run_id, "loss") == [(1, 1.0)]
    assert history(uri, run_id, "twice") == [(1, 2.0)]


@pytest.mark.slow
def test_a_point_or_picture_that_mlflow_does_not_take_holds_up_nothing_behind_it(
    uri: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept: dict[str, bytes] = {}
    log = MetricLog(uri, run_id, tmp_path, keep=lambda kind, data: kept.setdefault(kind, data) and f"s3://kept/{kind}")
    png = encode_png(PICTURE)
    rows: list[spool.Row] = [(1_700_000_000_000 + step, step, "no?", float(step), None) for step in range(3)]
    rows += [(1, 1, "../outside", None, png), (1, 2, "panel", None, png)]
    rows += [(1_700_000_000_000 + step, step, "loss", float(step), None) for step in range(40)]
    log.add(rows)
    assert log.close(timeout_s=5) == 1
    assert history(uri, run_id, "loss") == [(step, float(step)) for step in range(40)]
    assert pictures(uri, run_id, "panel") == ["step_000002.png"]
    assert [row[2] for row in spool.unpack(kept["unsent"])] == ["../outside"]  # refused by MLflow's client, as a fault
    said = [record.message for record in caplog.records if run_id in record.message and "refuse" in record.message]
    assert [line.partition(":")[0] for line in said] == [
        f"MLflow refuses the metric no? of run {run_id}, which is set aside; the rest is sent",
        f"3 metric points and pictures of run {run_id} were refused by MLflow and are kept in s3",
    ]
    assert [row[2] for row in spool.unpack(kept["refused"])] == ["no?", "no?", "no?"]
    assert not list(tmp_path.glob("*"))


@pytest.mark.slow
def test_pictures_that_cannot_be_stored_wait_and_points_arrive(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT)
    artifacts = tmp_path / "mlartifacts"
    artifacts.rename(tmp_path / "away")
    artifacts.write_bytes(b"")  # a file where the folder was
    log = MetricLog(uri, run_id, tmp_path / "spool")
    log.picture("panel", 1, PICTURE)
    log.metrics({"loss": 1.0}, 1)
    assert log.close(timeout_s=5) == 1
    assert history(uri, run_id, "loss") == [(1, 1.0)]
    artifacts.unlink()
    (tmp_path / "away").rename(artifacts)
    assert MetricLog(uri, run_id, tmp_path / "spool").close() == 0
    assert pictures(uri, run_id, "panel") == ["step_000001.png"]


@pytest.mark.slow
def test_points_of_a_deleted_run_are_not_refused_and_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = runs.open_mlflow_run(settings(uri), environment=ENVIRONMENT)
    log = MetricLog(uri, run_id, tmp_path / "spool")
    log.metrics({"loss": 1.0}, 1)
    wait_for(lambda: history(uri, run_id, "loss") == [(1, 1.0)])
    connect(uri).delete_run(run_id)
    log.metrics({"loss": 2.0}, 2)
    log.picture("panel", 2, PICTURE)
    assert log.close(timeout_s=3) == 2
    assert f"MLflow run {run_id} was deleted: restore it (mlflow runs restore --run-id {run_id}), or run" in caplog.text
    assert "refuse" not in caplog.text
    connect(uri).restore_run(run_id)
    assert MetricLog(uri, run_id, tmp_path / "spool").close() == 0
    assert history(uri, run_id, "loss") == [(1, 1.0), (2, 2.0)]


def test_unsent_records_go_to_the_store_of_the_run_with_those_that_the_disk_did_not_take(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[bytes] = []
    log = MetricLog(NOWHERE, "e" * 32, tmp_path, keep=lambda kind, data: kept.append(data) or "s3://bucket/runs/t/metrics/x")
    log.metrics({"loss": 1.0, "lr": math.nan}, 1)
    (used,) = log._records.execute("PRAGMA page_count").fetchone()
    log._records.execute(f"PRAGMA max_page_count = {used}")
    for step in range(2, 500):
        log.metrics({"loss": float(step)}, step)
    assert log._unwritten
    assert log.close(timeout_s=0.1) == 500
    assert [row[1:] for row in spool.unpack(kept[0])] == [
        (1, "loss", 1.0, None),
        (1, "lr", None, None),
        *((step, "loss", float(step), None) for step in range(2, 500)),
    ]
    assert "500 metric points and pictures of run" in caplog.text
    assert "are kept in s3://bucket/runs/t/metrics/x: the next start of the run sends them" in caplog.text
    assert not list(tmp_path.glob("*"))


def test_a_store_that_fails_leaves_the_records_on_disk_and_the_message_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(kind: str, data: bytes) -> str:
        raise OSError("no such bucket")

    log = MetricLog(NOWHERE, "f" * 32, tmp_path, keep=fail)
    log.metrics({"loss": 1.0}, 1)
    assert log.close(timeout_s=0.1) == 1
    assert "no such bucket" in caplog.text
    assert f"are kept in {tmp_path}/{'f' * 32}.db on {socket.gethostname()}: the next start of the run sends them" in caplog.text
    assert records(tmp_path, "SELECT key, step FROM record WHERE NOT sent") == [("loss", 1)]
