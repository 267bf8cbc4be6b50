"""The door to MLflow's runs: settings, points, pictures, texts. Only MlflowClient, never the fluent API's hidden state."""

import json
import logging
import os
import shutil
import socket
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from pipeline.config.base import JOB_MARK, Tracking
from pipeline.config.config import Config, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

RUN_KEY = "ccnet.run_key"
LEFT_OFF = "ccnet.left_off"
START = "try: python -m infra.stack up, or: mlflow server --host 127.0.0.1 --port 5000; then tracking.uri=http://127.0.0.1:5000"


class TrackingError(RuntimeError):
    """MLflow cannot be used as asked; the message names the address and the fix."""


class Point(NamedTuple):
    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970; part of a point's identity in MLflow, so a repeated point repeats it."""
    step: int


def tracking_uri(tracking: Tracking) -> str:
    """The configured server, else MLFLOW_TRACKING_URI, else mlflow.db in this folder. Raises TrackingError for a file store, and
    for an http address with a user, password or not."""
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
            f"tracking.uri = {shown!r}: was given with a user, which MLflow's messages would show; leave the user out and set "
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


def check(uri: str, timeout_s: float = 5.0) -> None:
    """Raises TrackingError within seconds when MLflow at `uri` does not answer; MLflow's own retries would take minutes."""
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
    """Imports MLflow, which takes seconds: in a thread beforehand, or by the first client. Settings of the environment win."""
    for key, value in (("TIMEOUT", "20"), ("MAX_RETRIES", "2"), ("BACKOFF_FACTOR", "1")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{key}", value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the cluster unasked
    import mlflow  # noqa: F401


def connect(uri: str) -> "MlflowClient":
    """A client of the server and its registry that gives up in a minute."""
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def reached(uri: str) -> Iterator[None]:
    """Raises TrackingError with the fix in place of what MLflow raises when it does not answer."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = str(error).splitlines()[0].replace(uri, without_password(uri))
        raise TrackingError(
            f"tracking.uri = {without_password(uri)}: the result could not be recorded ({reason}): submit the same again when "
            "MLflow answers"
        ) from error


def open_run(
    settings: Config,
    *,
    environment: Mapping[str, str],
    run_key: str | None = None,
    parent_run_id: str | None = None,
    run_name: str | None = None,
) -> str:
    """The run id of this configuration: its earlier run reopened, or a new one.

    A run is found by the tag `ccnet.run_key` (`run_key`, by default the configuration's own; a trial passes its own).
    Parameters are every resolved setting under its dotted name. MLflow never changes a parameter, so a reopened run keeps
    the first values; the artifact config.yaml holds the latest.
    """
    client = connect(tracking_uri(settings.tracking))
    experiment_id = _experiment(client, settings.tracking.experiment, tracking_uri(settings.tracking))
    key = run_key or settings.run_key
    # A tag's dots need the back quotes; the oldest wins should two drivers ever have raced.
    found = client.search_runs(
        [experiment_id], f"tags.`{RUN_KEY}` = '{key}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    tags = {f"ccnet.{name}": value for name, value in environment.items()}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        run = client.create_run(experiment_id, tags={RUN_KEY: key}, run_name=run_name or key)
    run_id: str = run.info.run_id
    _log_settings(client, run_id, settings, tags, known=set(run.data.params))
    return run_id


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith("sqlite:"):  # without a server MLflow would put artifacts into whatever folder we happen to be in
        location = (Path(uri.partition(":///")[2]).absolute().parent / "mlartifacts" / name).as_uri()
    for _ in range(2):
        if found := client.get_experiment_by_name(name):
            if found.lifecycle_stage != "active":
                raise TrackingError(
                    f"tracking.experiment = {name!r}: was deleted; restore it (mlflow experiments restore) or use another name"
                )
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another driver was quicker
                raise
    raise TrackingError(f"tracking.experiment = {name!r}: neither found nor created")


def _log_settings(client: "MlflowClient", run_id: str, settings: Config, tags: Mapping[str, str], known: set[str]) -> None:
    from mlflow.entities import Param, RunTag

    tree = settings.record()
    params = [Param(key, value[:6000]) for key, value in flatten(tree).items() if key not in known]
    for start in range(0, max(len(params), 1), 100):  # 100 parameters is the server's limit for one request
        client.log_batch(
            run_id, params=params[start : start + 100], tags=[RunTag(k, v) for k, v in tags.items()] if not start else []
        )
    client.log_text(run_id, yaml.safe_dump(tree, sort_keys=False), "config.yaml")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as {dotted name: text}; lists and null as JSON."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def finish_run(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"], left_off: str | None = None) -> None:
    """Ends a run; a run that a killed driver left RUNNING is ended the same way, or reopened by open_run.

    `left_off`: why it ended before its last step, kept as a tag.
    """
    client = connect(uri)
    if left_off:
        client.set_tag(run_id, LEFT_OFF, left_off)
    client.set_terminated(run_id, status)


def logged_steps(client: "MlflowClient", run_id: str) -> dict[str, set[int]]:
    """Steps the server already has, by metric."""
    keys = client.get_run(run_id).data.metrics
    return {key: {point.step for point in client.get_metric_history(run_id, key)} for key in keys}


def send_points(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> None:
    """Sends at most 1000 points in one request. Sending the same points again changes nothing."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def send_picture(client: "MlflowClient", run_id: str, name: str, png: Path, step: int) -> None:
    """Sends a picture as `<name>/step_000100.png`, and as `<name>.png`, the latest. Sent again, it replaces itself.

    Not MlflowClient.log_image: a random part of its names shows a picture sent again twice, and MLflow's page of charts
    covers such pictures with the text of a run's many parameters.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in (Path(name, f"step_{step:06d}.png"), Path(f"{name}.png")):
            copy = shutil.copyfile(png, Path(folder, path.name))
            client.log_artifact(run_id, str(copy), str(path.parent) if path.parent != Path() else None)


def log_text(uri: str, run_id: str, name: str, text: str) -> None:
    """Keeps a text with the run; the same name replaces the one before."""
    connect(uri).log_text(run_id, text, name)


def add_line(uri: str, run_id: str, name: str, line: str) -> None:
    """Adds a line to a text of the run that has one writer at a time."""
    client = connect(uri)
    with tempfile.TemporaryDirectory() as folder:
        before = ""
        if any(artifact.path == name for artifact in client.list_artifacts(run_id)):
            before = Path(client.download_artifacts(run_id, name, folder)).read_text()
        client.log_text(run_id, f"{before}{line}\n", name)


def record_fault(uri: str, run_id: str, event: Mapping[str, Any]) -> None:
    """Adds what failed, and what was done about it, to the run."""
    add_line(uri, run_id, "faults.jsonl", json.dumps(event))


def page(uri: str, run_id: str) -> str:
    """Where to look at a run: its page in the MLflow UI, or the command that opens one on a database file."""
    if not uri.startswith("http"):
        return f"{run_id}  (mlflow ui --backend-store-uri {without_password(uri)})"
    return f"{uri.rstrip('/')}/#/experiments/{connect(uri).get_run(run_id).info.experiment_id}/runs/{run_id}"


def end_children(uri: str, parent_run_id: str, status: Literal["FAILED", "KILLED"]) -> None:
    """Ends every run below the parent that still counts as running."""
    client = connect(uri)
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    for run in client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent_run_id}'"):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status)
