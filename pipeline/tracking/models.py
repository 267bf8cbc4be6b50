"""Models as MLflow 3 knows them: files that it stores, linked to the run, its scores and its data set."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import PipelineError, TrackingError
from pipeline.tracking.client import connect, first_line
from pipeline.tracking.registry import CHECKPOINT_SHA256
from pipeline.tracking.runs import LONGEST_TAG, NOTE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

TYPE = "semantic segmentation"
UPLOAD_S = 600
"""Longest wait for the answer to one file. Servers answer when they have passed it on to their store."""
FOLDER = "data/model"
"""The delivered folder, in the files of an MLflow model."""


class Entry(NamedTuple):
    """What MLflow shows of a model beside its files."""

    name: str
    card: str
    """Markdown."""
    checkpoint_sha256: str
    """What it was made of; a run has one model for each."""
    step: int
    params: Mapping[str, str]
    scores: Sequence[str]
    """Metrics of the run, whose points at `step` are the model's."""


def log_model(uri: str, run_id: str, entry: Entry, write: Callable[[Path, str], None]) -> str:
    """Stores a model that a run has made, and returns its id: `models:/<id>` is its address. Repeated calls return the same one.

    `write` gets a folder, which it creates and fills, and the model's id. A model whose storing was interrupted is stored again.
    Raises TrackingError if the server, its artifact store or a proxy does not take it.
    """
    try:
        return _stored(uri, run_id, entry, write)
    except PipelineError:
        raise
    except Exception as error:  # of MLflow, and of any client of any artifact store
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of this machine
            raise
        raise TrackingError(f"MLflow did not take a copy of the model ({first_line(error, uri)})") from error


def _stored(uri: str, run_id: str, entry: Entry, write: Callable[[Path, str], None]) -> str:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = connect(uri)
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    model = _found(client, experiment, run_id, entry)
    if model is None:
        model = client.create_logged_model(
            experiment,
            name=entry.name,
            source_run_id=run_id,
            tags={CHECKPOINT_SHA256: entry.checkpoint_sha256, NOTE: entry.card[:LONGEST_TAG]},
            params=dict(entry.params),
            model_type=TYPE,
        )
    model_id: str = model.model_id
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "mlflow-model")
            write(folder, model_id)
            with _patient():
                client.log_model_artifacts(model_id, str(folder))
        if model_id not in {each.model_id for each in (run.outputs.model_outputs if run.outputs else [])}:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, entry.step)])
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    _link_scores(client, run, model_id, entry)
    return model_id


@contextmanager
def _patient() -> Iterator[None]:
    """Has the requests of this process wait longer for answers. After `connect`, which sets the usual time."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(max(UPLOAD_S, int(before)))
    try:
        yield
    finally:
        os.environ[name] = before


def _found(client: "MlflowClient", experiment: str, run_id: str, entry: Entry) -> "LoggedModel | None":
    made = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    return next((model for model in made if model.tags.get(CHECKPOINT_SHA256) == entry.checkpoint_sha256), None)


def _link_scores(client: "MlflowClient", run: "Run", model_id: str, entry: Entry) -> None:
    """Gives the model the points that its run has of these scores. Repeating it changes nothing."""
    from mlflow.entities import Metric

    run_id: str = run.info.run_id
    data = run.inputs.dataset_inputs[0].dataset if run.inputs and run.inputs.dataset_inputs else None
    name, digest = (data.name, data.digest) if data else (None, None)
    points = []
    for key in entry.scores:
        # The same time and value: for the run, MLflow takes it as the point that it has.
        own = [point for point in client.get_metric_history(run_id, key) if point.step == entry.step]
        points += [Metric(key, point.value, point.timestamp, point.step, model_id, name, digest, run_id) for point in own[-1:]]
    if points:
        client.log_batch(run_id, metrics=points)


def read_files(uri: str, model_id: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """Files of the delivered folder in an MLflow model."""
    import mlflow.artifacts

    location = connect(uri).get_logged_model(model_id).artifact_location
    with tempfile.TemporaryDirectory() as scratch:
        return {
            name: Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{location}/{FOLDER}/{name}", dst_path=scratch, tracking_uri=uri
                )
            ).read_bytes()
            for name in names
        }
