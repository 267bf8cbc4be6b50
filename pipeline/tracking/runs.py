"""MLflow's runs: settings, texts, faults, status. Uses MlflowClient only, because the fluent API keeps hidden state."""

import hashlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline.config.config import Config, without_password
from pipeline.errors import TrackingError
from pipeline.tracking.client import connect, database_file, reached, tracking_uri
from pipeline.tracking.datasets import DataSet, log_data
from pipeline.tracking.delivery import copy_points, refused_items
from pipeline.tracking.keys import class_keys, legal_key
from pipeline.tracking.provenance import CODE, source

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

RUN_KEY = "ccnet.run_key"
STOP_REASON = "ccnet.stop_reason"
OTHER_CODE = "ccnet.resumed_with"
"""Tag of a run that was resumed with another commit or other versions: one line for each time."""
CLASS = "ccnet.class"
EARLIER_RUN = "ccnet.earlier_run"
SECTIONS = ("seed", "data", "model", "train", "loss", "stop", "faults", "evaluate")
"""What shapes or describes a run: logged as its parameters."""
NOTE, NOTE_SHA256 = "mlflow.note.content", "ccnet.description_sha256"
"""Tags of a run: its description, and the hash of the one that was written here."""
ORIGIN = ("mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit", "mlflow.user")
"""Tags of a run: what started it, and who. Children have those of their parent."""
MOST_CHILDREN = 50_000
"""Most runs that a server returns at once."""
LONGEST_FOLDER = 60
"""Characters of the folder of an experiment's artifacts, in which each may take four bytes."""
LONGEST_PARAM, LONGEST_TAG = 6000, 5000
"""Characters of a value that MLflow takes; newer servers take longer tags."""


def open_mlflow_run(
    settings: Config,
    *,
    environment: Mapping[str, str],
    run_key: str | None = None,
    parent_run_id: str | None = None,
    run_name: str | None = None,
    other_code: str = "",
    class_names: Sequence[str] = (),
    data: DataSet | None = None,
) -> str:
    """Reopens the earlier run of this configuration or creates one; returns its run id. Raises TrackingError.

    A run is found by the tag `ccnet.run_key`: the configuration's run key, unless `run_key` is given (as by a trial).
    The settings of SECTIONS are parameters under their dotted names. MLflow never changes a parameter, so a reopened run keeps
    the first values; the artifact config.yaml holds all settings, the latest. The tags of commit and versions keep the first
    values too; `other_code`, a line that says what changed since the checkpoint that the run resumes from, is added to
    `ccnet.resumed_with`. `data`: what the run trains on. A class whose metrics have another name than the class is named in a
    tag `ccnet.class/<that name>`.
    """
    uri = tracking_uri(settings.tracking)
    tags = {f"{CLASS}/{key}": name for name, key in zip(class_names, class_keys(class_names), strict=True) if key != name}
    tags |= {f"ccnet.{name}": value for name, value in environment.items()}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    with reached(uri, "the run could not be opened"):
        client = connect(uri)
        run = _reopened_or_new(client, settings, run_key or settings.run_key, run_name)
        run_id: str = run.info.run_id
        first = run.data.tags
        if not any(name in first for name in ORIGIN):
            origin = client.get_run(parent_run_id).data.tags if parent_run_id else source()
            tags |= {name: origin[name] for name in ORIGIN if name in origin}
        tags = {name: value for name, value in tags.items() if name not in first or name.removeprefix("ccnet.") not in CODE}
        if other_code:
            tags[OTHER_CODE] = "\n".join(filter(None, [first.get(OTHER_CODE), other_code]))[-LONGEST_TAG:]
        _log_settings(client, run_id, settings, tags, known=set(run.data.params))
        if data:
            log_data(client, run_id, data)
    return run_id


def _reopened_or_new(client: "MlflowClient", settings: Config, key: str, run_name: str | None) -> "Run":
    experiment = experiment_id(client, settings.tracking.experiment, tracking_uri(settings.tracking))
    run = _of_key(client, experiment, key)
    if run is None:
        return client.create_run(experiment, tags={RUN_KEY: key}, run_name=run_name or key)
    client.update_run(run.info.run_id, status="RUNNING")
    if STOP_REASON in run.data.tags:  # of an earlier attempt
        client.delete_tag(run.info.run_id, STOP_REASON)
    return run


def find_run(settings: Config, run_key: str | None = None) -> "Run | None":
    """The MLflow run of this configuration, or that of `run_key`; None if there is none. Nothing is changed.

    Raises TrackingError.
    """
    with reached(uri := tracking_uri(settings.tracking), "the run could not be looked up"):
        client = connect(uri)
        experiment = client.get_experiment_by_name(settings.tracking.experiment)
        return _of_key(client, experiment.experiment_id, run_key or settings.run_key) if experiment else None


def _of_key(client: "MlflowClient", experiment: str, key: str) -> "Run | None":
    # The tag's name needs back quotes because it has dots. If two drivers ever raced, the oldest run wins.
    found = client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{key}'", max_results=1, order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def experiment_id(client: "MlflowClient", name: str, uri: str) -> str:
    """The id of an experiment, which is made if it is not there. Raises TrackingError if it was deleted."""
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith("sqlite:"):  # without a server, MLflow would put artifacts into the current folder
        location = (database_file(uri).parent / "mlartifacts" / legal_key(name, LONGEST_FOLDER)).as_uri()
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
    flat = flatten({section: tree[section] for section in SECTIONS})
    params = {legal_key(key): value[:LONGEST_PARAM] for key, value in flat.items()}
    _log_batch(client, run_id, "params", [Param(key, value) for key, value in params.items() if key not in known])
    _log_batch(client, run_id, "tags", [RunTag(key, _storable(value)[:LONGEST_TAG]) for key, value in tags.items()])
    client.log_text(run_id, yaml.safe_dump(tree, sort_keys=False), "config.yaml")


def _log_batch(client: "MlflowClient", run_id: str, kind: Literal["params", "tags"], items: Sequence[Any]) -> None:
    """Logs parameters or tags. A refused one is a warning: config.yaml has all settings."""

    def send(part: Sequence[Any]) -> None:
        client.log_batch(run_id, params=part if kind == "params" else (), tags=part if kind == "tags" else ())

    for start in range(0, len(items), 100):  # the server's limit for one request
        for item, reason in refused_items(items[start : start + 100], send):
            logger.warning("MLflow refuses %s among the %s of run %s and does not show it: %s", item.key, kind, run_id, reason)


def _storable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # half a surrogate pair has no encoding


def take_over(uri: str, earlier: str, run_id: str, step: int) -> None:
    """Copies the metric points of the first `step` steps from the MLflow run that recorded them, even if it was deleted.

    Needed where training resumes under a new MLflow run. Repeating it changes nothing.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    with reached(uri, "the run could not be opened"):
        try:
            number = copy_points(client, earlier, run_id, step)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning(
                "MLflow has no run %s any more, which recorded the first %d steps: run %s gets the points of the run's folder",
                earlier, step, run_id,
            )  # fmt: skip
            return
        client.set_tag(run_id, EARLIER_RUN, earlier)
    logger.warning(
        "MLflow run %s, which recorded the first %d steps, was deleted or is in another experiment: run %s has a copy of its %d "
        "metric points; its pictures stay there", earlier, step, run_id, number,
    )  # fmt: skip


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

    `stop_reason`: why the run ended before its last step, stored as a tag. Raises TrackingError if the server then shows another
    status.
    """
    client = connect(uri)
    if stop_reason:
        client.set_tag(run_id, STOP_REASON, stop_reason)
    client.set_terminated(run_id, status)
    if (shown := client.get_run(run_id).info.status) != status:
        raise TrackingError(
            f"MLflow run {run_id} is still {shown}, although the server confirmed {status}: it does not store what it takes; "
            "look at its database, then run the same command again"
        )


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of a metric's finite points, by step."""
    points = connect(uri).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points if math.isfinite(point.value))


def describe(
    uri: str,
    run_id: str,
    note: str,
    figures: Mapping[str, float] | None = None,
    step: int = 0,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Sets the description of a run's page, in Markdown, metrics at `step`, and the tags `facts`. Keeps an edited description."""
    from mlflow.entities import Metric, RunTag

    client, text, now = connect(uri), _storable(note)[:LONGEST_TAG], int(time.time() * 1000)
    tags = client.get_run(run_id).data.tags
    edited = NOTE in tags and _sha256(tags[NOTE]) != tags.get(NOTE_SHA256)
    metrics = [Metric(key, value, now, step) for key, value in (figures or {}).items() if math.isfinite(value)]
    described = {} if edited else {NOTE: text, NOTE_SHA256: _sha256(text)}
    set_to = described | {key: _storable(value)[:LONGEST_TAG] for key, value in (facts or {}).items()}
    client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in set_to.items()])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
    experiment, view = connect(uri).get_run(run_id).info.experiment_id, "workflowType=machine_learning"  # else that for agents
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}?{view}"


def settle_children(uri: str, parent_run_id: str, statuses: Mapping[str, tuple[str, str]]) -> None:
    """Gives the children of a run the status and the reason in `statuses`, by their run keys; the others are left alone."""
    client = connect(uri)
    for run in _children(client, parent_run_id):
        status, reason = statuses.get(run.data.tags.get(RUN_KEY, ""), (run.info.status, ""))
        if reason and run.data.tags.get(STOP_REASON) != reason:
            client.set_tag(run.info.run_id, STOP_REASON, reason[:LONGEST_TAG])
        if run.info.status != status:
            client.set_terminated(run.info.run_id, status)


def end_children(uri: str, parent_run_id: str, status: Literal["FAILED", "KILLED"]) -> None:
    """Ends every child run of the parent whose status is RUNNING."""
    client = connect(uri)
    for run in _children(client, parent_run_id):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status)


def _children(client: "MlflowClient", parent_run_id: str) -> "list[Run]":
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    return list(client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent_run_id}'", max_results=MOST_CHILDREN))
