"""Data sets as MLflow knows them: inputs of runs, by which runs are found."""

import json
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config.config import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient


class DataSet(NamedTuple):
    """A data set as MLflow shows it beside a run, and finds runs by it."""

    name: str
    digest: str
    """Of its content, at most 36 characters."""
    source: str
    """Its address."""
    profile: Mapping[str, Any]
    """Counts, for its page."""


def log_data(client: "MlflowClient", run_id: str, data: DataSet, use: str = "training") -> None:
    """Names the data set as an input of the run, which uses it for `use`. Repeating it changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    address = json.dumps({"uri": without_password(data.source)})
    kind = urllib.parse.urlsplit(data.source).scheme or "local"
    dataset = Dataset(data.name, data.digest, kind, address, profile=json.dumps(data.profile))
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", use)])])
