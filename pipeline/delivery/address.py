"""Where a model lies: a local folder, a prefix in a bucket, a registered version or an MLflow run."""

import re
from pathlib import Path
from typing import NamedTuple

from pipeline.delivery.record import RECORD, WEIGHTS
from pipeline.errors import ModelError

Files = dict[str, bytes]


class Found(NamedTuple):
    """A model folder as it was read."""

    files: Files
    place: str
    """Where it lies."""
    checkpoint_sha256: str | None
    """The checkpoint that MLflow says it was made of; None if it was not found by MLflow."""


def read_folder(address: str) -> Found:
    """Record and weights of the model at an address. Raises ModelError, and the errors of storage and MLflow."""
    if _in_mlflow(address):
        return _registered(address)
    return Found(_of_place(address), address, None)


def _of_place(place: str) -> Files:
    return _of_bucket(place) if place.startswith("s3://") else _of_folder(Path(place).expanduser())


def _in_mlflow(address: str) -> bool:
    """Whether it is `models:/NAME@ALIAS`, or an MLflow run id of which there is no folder."""
    return address.startswith("models:/") or (re.fullmatch("[0-9a-f]{32}", address) is not None and not Path(address).exists())


def _of_folder(folder: Path) -> Files:
    try:
        return {name: (folder / name).read_bytes() for name in (RECORD, WEIGHTS)}
    except OSError as error:
        raise _no_model(str(folder), error.strerror or str(error)) from None


def _of_bucket(url: str) -> Files:
    from pipeline.config.load import storage_at  # only here: the packages of storage are not needed for a folder
    from pipeline.storage.store import open_store

    storage = storage_at(url)
    store = open_store(storage.path, storage)
    try:
        return {name: store.read(name) for name in (RECORD, WEIGHTS)}
    except FileNotFoundError:
        raise _no_model(url, "no such object") from None


def _no_model(place: str, reason: str) -> ModelError:
    return ModelError(
        f"{place}: no model, which is a folder with {RECORD} and {WEIGHTS} ({reason}): jobs.train ends with the address of the "
        "folder that it delivers, <storage.path>/models/<run key>"
    )


def _registered(reference: str) -> Found:
    """The copy in MLflow, which is of this checkpoint whatever its run has delivered since; without one, the delivered folder."""
    from pipeline.config.base import Tracking
    from pipeline.tracking import models, registry
    from pipeline.tracking.client import reached, tracking_uri

    uri = tracking_uri(Tracking())
    url, checkpoint, model_id = registry.find_model(uri, reference)
    if model_id:
        with reached(uri, f"the model {model_id} could not be read"):
            return Found(models.read_files(uri, model_id, (RECORD, WEIGHTS)), f"models:/{model_id}", checkpoint.sha256)
    if url is None:
        raise ModelError(f"{reference}: its run delivered no model: run jobs.train again with the same configuration, which does")
    return Found(_of_place(url), url, checkpoint.sha256)
