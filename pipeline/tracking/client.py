"""The connection to MLflow: its address, the check that it answers, the client."""

import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.base import JOB_MARK, Tracking
from pipeline.config.config import without_password
from pipeline.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
    """Raises TrackingError within seconds if MLflow at `uri` does not answer; MLflow's own retries would take minutes."""
    parts, shown = urllib.parse.urlsplit(uri), without_password(uri)
    try:
        if parts.scheme in ("http", "https"):
            request = urllib.request.Request(uri.rstrip("/") + "/health")
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                answer = reply.read(100).decode(errors="replace").strip()
            if answer != "OK":
                raise TrackingError(f"tracking.uri = {shown}: answers, but not as an MLflow server does; {START}")
            return
        if parts.hostname:
            socket.create_connection((parts.hostname, parts.port or 5432), timeout=timeout_s).close()
        elif not (folder := Path(parts.path.removeprefix("/")).absolute().parent).is_dir():
            raise TrackingError(f"tracking.uri = {shown}: folder {folder} does not exist; create it or choose another file")
    except OSError as error:  # URLError and HTTPError included
        reason = getattr(error, "reason", None) or error
        raise TrackingError(f"tracking.uri = {shown}: no MLflow server answers there ({reason}); {START}") from error


def import_mlflow() -> None:
    """Imports MLflow. This takes seconds, so a thread may do it before the first client. Variables already set stay."""
    for key, value in (("TIMEOUT", "20"), ("MAX_RETRIES", "2"), ("BACKOFF_FACTOR", "1")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{key}", value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no data leaves the cluster without consent
    import mlflow  # noqa: F401


def connect(uri: str) -> "MlflowClient":
    """A client of the server and its registry that gives up after about a minute."""
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def reached(uri: str) -> Iterator[None]:
    """Replaces an exception of MLflow by a TrackingError that names the fix."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = str(error).splitlines()[0].replace(uri, without_password(uri))
        raise TrackingError(
            f"tracking.uri = {without_password(uri)}: the result could not be recorded ({reason}): run the same command "
            "again when MLflow answers"
        ) from error
