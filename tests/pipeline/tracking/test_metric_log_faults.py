"""10,000 points while a real MLflow server fails: each legal one arrives exactly once, with a sentence for the rest."""

import logging
import math
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking import runs
from pipeline.tracking.client import connect
from pipeline.tracking.metric_log import MetricLog
from tests.pipeline.tracking.test_metric_log import PICTURE, pictures, wait_for
from tests.pipeline.tracking.test_runs import settings
from tests.support.faulty_store import FaultyStore
from tests.support.mlflow_server import MlflowServer

POINTS = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server that may be hurt."""
    with MlflowServer(tmp_path_factory.mktemp("hurt")) as server:
        yield server


@contextmanager
def hung(server: MlflowServer) -> Iterator[None]:
    """The server takes connections and answers nothing."""
    assert server.process
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)


@contextmanager
def restarted(server: MlflowServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def locked(server: MlflowServer) -> Iterator[None]:
    """Another process writes to the server's database and does not end."""
    with closing(sqlite3.connect(server.folder / "mlflow.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def run_deleted(server: MlflowServer, run_id: str) -> Iterator[None]:
    connect(server.uri).delete_run(run_id)
    yield
    connect(server.uri).restore_run(run_id)


@contextmanager
def experiment_deleted(server: MlflowServer, run_id: str) -> Iterator[None]:
    client = connect(server.uri)
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    yield
    client.restore_experiment(experiment)
    client.restore_run(run_id)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [hung, restarted, locked, run_deleted, experiment_deleted], ids=lambda fault: fault.__name__)
def test_every_legal_point_arrives_once_whatever_the_server_does(
    fault: Any, server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    name, uri = fault.__name__, server.uri
    run_id = runs.open_mlflow_run(settings(uri, **{"tracking.experiment": name}), environment={})
    kept: dict[str, bytes] = {}
    log = MetricLog(uri, run_id, tmp_path, keep=lambda kind, data: kept.setdefault(kind, data) and f"s3://kept/{kind}")
    with caplog.at_level(logging.WARNING), fault(server, run_id) if "deleted" in name else fault(server):
        for step in range(POINTS):
            log.metrics({"loss": math.nan if step % 1000 == 7 else math.inf if step % 1000 == 8 else float(step)}, step)
        log.add([(1, 1, "no?", 1.0, None)])  # a name that MLflow refuses
        log.picture("panel", 3, PICTURE)
        wait_for(lambda: f"metrics of run {run_id} wait, trying again" in caplog.text)
    assert log.close(timeout_s=120) == 0
    found = connect(uri).get_metric_history(run_id, "loss")
    assert Counter(point.step for point in found) == Counter(range(POINTS))
    finite = {point.step: point.value for point in found if math.isfinite(point.value)}
    assert finite == {step: float(step) for step in range(POINTS) if step % 1000 not in (7, 8)}
    assert pictures(uri, run_id, "panel") == ["step_000003.png"]
    assert f"MLflow refuses the metric no? of run {run_id}, which is set aside; the rest is sent" in caplog.text
    assert (log.delivered.points, log.delivered.num_refused, set(log.delivered.refused)) == (POINTS, 1, {"metric no?"})
    assert set(kept) == {"sent", "refused"}


@pytest.mark.slow
def test_the_status_that_a_server_does_not_keep_is_named(server: MlflowServer) -> None:
    with FaultyStore(server.uri, aimed={r"runs/update ": "forget"}) as proxy:
        run_id = runs.open_mlflow_run(settings(proxy.endpoint), environment={})
        with pytest.raises(runs.TrackingError, match=f"{run_id} is still RUNNING, although the server confirmed FINISHED"):
            runs.finish_run(proxy.endpoint, run_id, "FINISHED")
        proxy.aimed.clear()
        runs.finish_run(proxy.endpoint, run_id, "FINISHED")
