"""Evaluations as MLflow runs: found from the training run, and linked to the model and the data set."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config.base import Tracking
from pipeline.tracking.client import connect, reached, tracking_uri
from pipeline.tracking.datasets import DataSet, log_data
from pipeline.tracking.delivery import BATCH
from pipeline.tracking.provenance import source
from pipeline.tracking.registry import CHECKPOINT_SHA256, CHECKPOINT_URL, MODEL_ID
from pipeline.tracking.runs import RUN_KEY, describe, experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KIND, EVALUATION = "ccnet.kind", "evaluation"
"""Tag of such a run."""


class Entry(NamedTuple):
    """What MLflow shows of an evaluation."""

    key: str
    """Of its content: the same evaluation again is the same run."""
    checkpoint_url: str
    checkpoint_sha256: str
    step: int
    trained_by: str | None
    """MLflow run that trained the checkpoint, if it is known."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    data: DataSet
    note: str
    """Markdown."""
    files: Mapping[str, bytes]
    is_of_model: bool
    """Whether the model gets these scores, by which MLflow compares models: only if the inference was that of the validation."""


def log_evaluation(tracking: Tracking, entry: Entry) -> str:
    """Records an evaluation and returns its run id. Repeating it changes nothing. Raises TrackingError.

    It is a child of the training run, in whose experiment it then is.
    """
    from mlflow.entities import LoggedModelInput, Metric, Param

    uri = tracking_uri(tracking)
    with reached(uri, "the evaluation could not be recorded"):
        client = connect(uri)
        trained_by = _run(client, entry.trained_by)
        experiment = trained_by.info.experiment_id if trained_by else experiment_id(client, tracking.experiment, uri)
        run = _found_or_new(client, experiment, entry, trained_by)
        run_id: str = run.info.run_id
        model_id = None
        if trained_by and trained_by.data.tags.get(CHECKPOINT_SHA256) == entry.checkpoint_sha256:
            model_id = trained_by.data.tags.get(MODEL_ID)
        scored_id = model_id if entry.is_of_model else None
        log_data(client, run_id, entry.data, "evaluation")
        if model_id:
            client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        now = run.info.start_time  # the same at each repetition
        points = [
            Metric(key, value, now, entry.step, scored_id, entry.data.name, entry.data.digest, run_id)
            for key, value in entry.metrics.items()
        ]
        for start in range(0, len(points), BATCH):
            client.log_batch(run_id, metrics=points[start : start + BATCH])
        client.log_batch(run_id, params=[Param(key, value) for key, value in entry.params.items() if key not in run.data.params])
        with tempfile.TemporaryDirectory() as folder:
            for name, data in entry.files.items():
                Path(folder, name).write_bytes(data)
            client.log_artifacts(run_id, folder)
        describe(uri, run_id, entry.note)
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _run(client: "MlflowClient", run_id: str | None) -> "Run | None":
    """The run, unless it is not there or was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None  # of another server
    return run if run and run.info.lifecycle_stage == "active" else None


def _found_or_new(client: "MlflowClient", experiment: str, entry: Entry, trained_by: "Run | None") -> "Run":
    found = client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{entry.key}'", max_results=1)
    if found:
        return found[0]
    tags = {
        RUN_KEY: entry.key,
        KIND: EVALUATION,
        CHECKPOINT_URL: entry.checkpoint_url,
        CHECKPOINT_SHA256: entry.checkpoint_sha256,
    }
    tags |= source() | ({"mlflow.parentRunId": trained_by.info.run_id} if trained_by else {})
    return client.create_run(experiment, tags=tags, run_name=entry.key)
