"""MLflow at the start of a run: what cannot be used is one sentence with the fix."""

import errno
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import TrackingError
from pipeline.tracking.client import check_server, reached
from tests.support.mlflow_server import MlflowServer


@contextmanager
def answering(status: int) -> Iterator[str]:
    """Address of a server that is healthy and answers every other request with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            healthy = self.path == "/health"
            self.send_response(200 if healthy else status)
            self.end_headers()
            self.wfile.write(b"OK" if healthy else b"a page")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def fault_of(uri: str) -> str:
    with pytest.raises(TrackingError) as caught:
        check_server(uri, timeout_s=0.5)
    text = str(caught.value)
    assert text.startswith(f"tracking.uri = {uri}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not accept the credentials .* set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, "denies access to its experiments .* ask its administrator"),
        (404, "answers, but not as an MLflow server does"),
        (500, "runs but does not answer requests .* look at the server's log"),
    ],
)
def test_a_healthy_server_that_answers_no_request_is_an_error(status: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(status) as uri, pytest.raises(TrackingError, match=said):
        check_server(uri)


def test_a_locked_database_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        assert "(database is locked); end the process that writes to it" in fault_of(f"sqlite:///{file}")


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mlflow #1.db"
    file.write_bytes(b"no database" * 1000)
    assert "cannot be used as a database (file is not a database); choose" in fault_of(f"sqlite:///{file}")


def test_a_folder_that_is_not_writable_is_an_error() -> None:
    assert "folder /proc is not writable" in fault_of("sqlite:////proc/mlflow.db")


def test_the_check_does_not_create_a_database(tmp_path: Path) -> None:
    check_server(f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())


def test_a_database_of_another_version_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('0123456789ab')")
    before = file.read_bytes()
    said = fault_of(f"sqlite:///{file}")
    assert "of another version of MLflow" in said
    assert said.endswith(f"run: mlflow db upgrade sqlite:///{file}")
    assert file.read_bytes() == before


@pytest.mark.slow
def test_a_server_that_answers_is_no_fault(mlflow_server: MlflowServer) -> None:
    check_server(mlflow_server.uri)
    check_server(f"{mlflow_server.uri}/")


def test_a_deleted_run_is_named_with_the_way_to_restore_it() -> None:
    run = "0" * 32
    said = f"mlflow runs restore --run-id {run}"
    with pytest.raises(TrackingError, match=said), reached("http://mlflow"):
        raise RuntimeError(f"INVALID_PARAMETER_VALUE: The run {run} must be in the 'active' state. Current state is deleted.")


def test_a_full_disk_here_is_no_fault_of_mlflow() -> None:
    with pytest.raises(OSError, match="No space left on device"), reached("http://mlflow"):
        raise OSError(errno.ENOSPC, "No space left on device")
