"""MLflow's runs: settings, texts, faults, status. Uses MlflowClient only, because the fluent API keeps hidden state."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline.config.config import Config, without_password
from pipeline.errors import TrackingError
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.provenance import CODE

if TYPE_CHECKING:
    from mlflow import MlflowClient


RUN_KEY = "ccnet.run_key"
STOP_REASON = "ccnet.stop_reason"
OTHER_CODE = "ccnet.resumed_with"
"""Tag of a run that was resumed with another commit or other versions: one line for each time."""
TAG_CHARS = 5000
"""Longest value of a tag that every MLflow server takes."""


def open_mlflow_run(
    settings: Config,
    *,
    environment: Mapping[str, str],
    run_key: str | None = None,
    parent_run_id: str | None = None,
    run_name: str | None = None,
    other_code: str = "",
) -> str:
    """Reopens the earlier run of this configuration or creates one; returns its run id.

    A run is found by the tag `ccnet.run_key`: the configuration's run key, unless `run_key` is given (as by a trial).
    Every resolved setting is a parameter under its dotted name. MLflow never changes a parameter, so a reopened run keeps
    the first values; the artifact config.yaml holds the latest. The tags of commit and versions keep the first values too;
    `other_code`, a line that says what changed since the checkpoint that the run resumes from, is added to `ccnet.resumed_with`.
    """
    client = connect(tracking_uri(settings.tracking))
    experiment_id = _experiment(client, settings.tracking.experiment, tracking_uri(settings.tracking))
    key = run_key or settings.run_key
    # The tag's name needs back quotes because it has dots. If two drivers ever raced, the oldest run wins.
    found = client.search_runs(
        [experiment_id], f"tags.`{RUN_KEY}` = '{key}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    tags = {f"ccnet.{name}": value for name, value in environment.items()}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    if found:
        run, first = found[0], found[0].data.tags
        tags = {name: value for name, value in tags.items() if name not in first or name.removeprefix("ccnet.") not in CODE}
        if other_code:
            tags[OTHER_CODE] = "\n".join(filter(None, [first.get(OTHER_CODE), other_code]))[-TAG_CHARS:]
        client.update_run(run.info.run_id, status="RUNNING")
        if STOP_REASON in run.data.tags:  # of an earlier attempt
            client.delete_tag(run.info.run_id, STOP_REASON)
    else:
        run = client.create_run(experiment_id, tags={RUN_KEY: key}, run_name=run_name or key)
    run_id: str = run.info.run_id
    _log_settings(client, run_id, settings, tags, known=set(run.data.params))
    return run_id


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith("sqlite:"):  # without a server, MLflow would put artifacts into the current folder
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
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # otherwise another driver created it first
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


def finish_run(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"], stop_reason: str | None = None) -> None:
    """Ends a run, also one that a killed driver left RUNNING (open_mlflow_run reopens it instead).

    `stop_reason`: why the run ended before its last step, stored as a tag.
    """
    client = connect(uri)
    if stop_reason:
        client.set_tag(run_id, STOP_REASON, stop_reason)
    client.set_terminated(run_id, status)


def log_text(uri: str, run_id: str, name: str, text: str) -> None:
    """Stores a text as an artifact of the run. It replaces an earlier one of the same name."""
    connect(uri).log_text(run_id, text, name)


def add_line(uri: str, run_id: str, name: str, line: str) -> None:
    """Appends a line to a text of the run. It is read and replaced, so only one process may write it at a time."""
    client = connect(uri)
    with tempfile.TemporaryDirectory() as folder:
        before = ""
        if any(artifact.path == name for artifact in client.list_artifacts(run_id)):
            before = Path(client.download_artifacts(run_id, name, folder)).read_text()
        client.log_text(run_id, f"{before}{line}\n", name)


def record_fault(uri: str, run_id: str, event: Mapping[str, Any]) -> None:
    """Appends a failure and the reaction to it to the run's faults.jsonl."""
    add_line(uri, run_id, "faults.jsonl", json.dumps(event))


def page(uri: str, run_id: str) -> str:
    """Where to see a run: the URL of its page in the MLflow UI, or its id and the command that opens the UI on a database."""
    if not uri.startswith("http"):
        return f"{run_id}  (mlflow ui --backend-store-uri {without_password(uri)})"
    return f"{uri.rstrip('/')}/#/experiments/{connect(uri).get_run(run_id).info.experiment_id}/runs/{run_id}"


def end_children(uri: str, parent_run_id: str, status: Literal["FAILED", "KILLED"]) -> None:
    """Ends every child run of the parent whose status is RUNNING."""
    client = connect(uri)
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    for run in client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent_run_id}'"):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status)
