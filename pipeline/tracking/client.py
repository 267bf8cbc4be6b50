"""The connection to MLflow: its address, the check that it answers, the client."""

import errno
import os
import re
import socket
import sqlite3
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.base import JOB_MARK, Tracking
from pipeline.config.config import without_password
from pipeline.errors import PipelineError, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

OTHER_VERSION = (
    "the database is of another version of MLflow than the one installed here; use another database or, if this one is older, "
    "make a copy of it and run: mlflow db upgrade"
)
START = "try: python -m infra.stack up, or: mlflow server --host 127.0.0.1 --port 5000; then tracking.uri=http://127.0.0.1:5000"


def tracking_uri(tracking: Tracking) -> str:
    """The configured server, else MLFLOW_TRACKING_URI, else mlflow.db in the current folder.

    Raises TrackingError for a file store, and for an http address with a user, with or without a password.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        if os.environ.get(JOB_MARK):
            raise TrackingError(
                f"tracking.uri = {uri!r}: a database in the folder of a submitted job is lost with the job; set tracking.uri or "
                "MLFLOW_TRACKING_URI to the http:// address of a server"
            )
        uri = f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    parts, shown = urllib.parse.urlsplit(uri), without_password(uri)
    scheme = parts.scheme.split("+")[0]
    if scheme.startswith("http") and parts.username is not None:
        raise TrackingError(
            f"tracking.uri = {shown!r}: contains a user, which MLflow's messages would show; remove the user and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, on the nodes as well"
        )
    if scheme in ("", "file"):
        folder = uri.removeprefix("file:")
        folder = "/" + folder.lstrip("/") if uri.startswith("file:/") else folder
        raise TrackingError(
            f"tracking.uri = {uri!r}: MLflow no longer writes plain folders (try sqlite:///{Path(folder).absolute()}/mlflow.db "
            "or the http:// address of a server)"
        )
    if scheme not in ("http", "https", "sqlite", "postgresql", "mysql"):
        raise TrackingError(f"tracking.uri = {shown!r}: must start with http://, https://, sqlite:///, postgresql:// or mysql://")
    return uri


def check_server(uri: str, timeout_s: float = 5.0) -> None:
    """Raises TrackingError if MLflow at `uri` does not answer a request made with the credentials of this process.

    A server that is not there is found within seconds; MLflow's own retries would take minutes. Nothing is written: a database
    file that does not exist yet is not created.
    """
    parts, shown = urllib.parse.urlsplit(uri), without_password(uri)
    try:
        if parts.scheme in ("http", "https"):
            _check_health(uri, timeout_s)
        elif parts.hostname:
            socket.create_connection((parts.hostname, parts.port or 5432), timeout=timeout_s).close()
        else:
            file = database_file(uri)
            _check_database(file, shown, timeout_s)
            if not file.exists():
                return
    except OSError as error:  # URLError included
        reason = getattr(error, "reason", None) or error
        raise TrackingError(f"tracking.uri = {shown}: no MLflow server answers there ({reason}); {START}") from error
    try:
        connect(uri).search_experiments(max_results=1)
    except PipelineError:
        raise
    except Exception as error:
        raise TrackingError(f"tracking.uri = {shown}: {_explained(error, uri)}") from error


def database_file(uri: str) -> Path:
    """The file of a `sqlite:///` address; it may contain any character but a question mark."""
    return Path(uri.partition(":///")[2].partition("?")[0]).absolute()


def _check_health(uri: str, timeout_s: float) -> None:
    try:
        with urllib.request.urlopen(urllib.request.Request(uri.rstrip("/") + "/health"), timeout=timeout_s) as reply:
            answer = reply.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # a proxy that asks for credentials, which the request after this one has
            return
        raise
    if answer != "OK":
        raise TrackingError(f"tracking.uri = {without_password(uri)}: answers, but not as an MLflow server does; {START}")


def _check_database(file: Path, shown: str, timeout_s: float) -> None:
    """Raises TrackingError if the database file cannot be written or is of another version. Changes nothing."""
    if not file.parent.is_dir():
        raise TrackingError(f"tracking.uri = {shown}: folder {file.parent} does not exist; create it or choose another file")
    other = "choose a file that you may write to, or a server (tracking.uri=http://HOST:5000)"
    try:
        tempfile.TemporaryFile(dir=file.parent).close()  # SQLite and MLflow write more files beside the database
    except OSError as error:
        raise TrackingError(
            f"tracking.uri = {shown}: folder {file.parent} is not writable ({error.strerror}); {other}"
        ) from error
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=timeout_s)) as database:
            database.execute("BEGIN IMMEDIATE")
            tables = database.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
            versions = {row[0] for row in database.execute("SELECT version_num FROM alembic_version")} if tables else set()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            other = "end the process that writes to it, or let both use a server (mlflow server --backend-store-uri ...)"
        raise TrackingError(f"tracking.uri = {shown}: the file cannot be used as a database ({error}); {other}") from error
    import_mlflow()
    from mlflow.store.db.utils import _get_latest_schema_revision

    # MLflow itself would change the tables of an older version.
    if versions - {_get_latest_schema_revision()}:  # type: ignore[no-untyped-call]
        raise TrackingError(f"tracking.uri = {shown}: {OTHER_VERSION} {shown}")


def _explained(error: Exception, uri: str) -> str:
    """What a failed first request means and what to do about it, in one sentence."""
    reason = first_line(error, uri)
    if isinstance(error, ModuleNotFoundError):
        return f"needs a Python package that is not installed ({reason}); install it here and on the nodes, or use a server"
    if "database schema" in reason:
        return f"{OTHER_VERSION} {without_password(uri)}"
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else 500
    if status == 401:
        return (
            f"MLflow does not accept the credentials ({reason}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, on the nodes as well"
        )
    if status == 403:
        return f"MLflow denies access to its experiments ({reason}); use other credentials, or ask its administrator for access"
    if status == 404:
        return f"answers, but not as an MLflow server does ({reason}); {START}"
    return f"MLflow runs but does not answer requests ({reason}); look at the server's log, often its database is out of reach"


def first_line(error: Exception, uri: str) -> str:
    """The first line of an exception, without a password."""
    lines = str(error).replace(uri, without_password(uri)).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def deleted(run_id: str) -> str:
    """What to do about a run that was deleted."""
    return (
        f"MLflow run {run_id} was deleted: restore it (mlflow runs restore --run-id {run_id}), or run the same command again "
        "when this one has ended: it records everything in a new MLflow run"
    )


def import_mlflow() -> None:
    """Imports MLflow. This takes seconds, so a thread may do it before the first client. Variables already set stay."""
    for key, value in (("TIMEOUT", "20"), ("MAX_RETRIES", "2"), ("BACKOFF_FACTOR", "1")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{key}", value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no data leaves the cluster without consent
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # a model takes no files of the current folder with it
    import mlflow  # noqa: F401


def connect(uri: str) -> "MlflowClient":
    """A client of the server and its registry that gives up after about a minute. Raises TrackingError if it cannot be made."""
    import_mlflow()
    from mlflow import MlflowClient

    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:  # of a database, which is opened here: drivers have errors of their own
        raise TrackingError(f"tracking.uri = {without_password(uri)}: {_explained(error, uri)}") from error


@contextmanager
def reached(uri: str, failed: str = "the result could not be recorded") -> Iterator[None]:
    """Replaces an exception of MLflow, its database or its artifact store by a TrackingError that names the fix.

    A full disk of this machine is no fault of MLflow's: the command says which one it is.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = first_line(error, uri)
        fix = "run the same command again when MLflow answers"
        if run := re.search(r"run ([0-9a-f]{32}) must be in the 'active' state", reason):
            fix = deleted(run.group(1))
        raise TrackingError(f"tracking.uri = {without_password(uri)}: {failed} ({reason}): {fix}") from error
