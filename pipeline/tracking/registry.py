"""MLflow's model registry: checkpoints are registered by reference.

MLflow holds the URL, the SHA-256 and the protocol of the mIoU, never the weights.
"""

import json
import logging
import math
import re
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import TrackingError
from pipeline.tracking.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

CHECKPOINT_URL = "ccnet.checkpoint_url"
CHECKPOINT_SHA256 = "ccnet.checkpoint_sha256"
MODEL_URL = "ccnet.model_url"
MIOU = "ccnet.miou"
PROTOCOL = "ccnet.protocol"
FLAW = "ccnet.flaw"
ALIAS = "best"


class Reference(NamedTuple):
    """A checkpoint that MLflow refers to."""

    url: str
    sha256: str


class Delivered(NamedTuple):
    """A delivered model that MLflow refers to."""

    url: str | None
    """Its folder; None for a run of an earlier version, which delivered none."""
    checkpoint: Reference
    """What it was made of. The folder may hold another one since."""


def log_best(
    uri: str,
    run_id: str,
    *,
    checkpoint_url: str,
    sha256: str,
    step: int,
    miou: float,
    protocol: Mapping[str, Any],
    flaw: str | None = None,
    model_url: str | None = None,
) -> None:
    """Records the run's best checkpoint so far by reference, in tags and best_checkpoint.json. Replaces the previous one.

    `flaw`: a reason not to trust the mIoU. `model_url`: the folder that was delivered.
    """
    from mlflow.entities import RunTag

    client = connect(uri)
    tags = _checkpoint_tags(checkpoint_url, sha256, miou, protocol, flaw, model_url) | {"ccnet.step": str(step)}
    entry = {"checkpoint": checkpoint_url, "sha256": sha256, "step": step, "miou": miou, "protocol": dict(protocol)}
    entry |= {"flaw": flaw} if flaw else {}
    if not flaw and FLAW in client.get_run(run_id).data.tags:  # of the previous one
        client.delete_tag(run_id, FLAW)
    client.log_text(run_id, json.dumps(entry, indent=2, sort_keys=True) + "\n", "best_checkpoint.json")
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])


def _checkpoint_tags(
    url: str, sha256: str, miou: float, protocol: Mapping[str, Any], flaw: str | None, model_url: str | None
) -> dict[str, str]:
    # Two scores are comparable if only the model differs, so the protocol to compare excludes the checkpoint's hash.
    rest = {key: value for key, value in protocol.items() if value != sha256}
    tags = {CHECKPOINT_URL: url, CHECKPOINT_SHA256: sha256, MIOU: repr(miou), PROTOCOL: json.dumps(rest, sort_keys=True)}
    return tags | ({FLAW: flaw} if flaw else {}) | ({MODEL_URL: model_url} if model_url else {})


def register(
    uri: str,
    run_id: str,
    name: str,
    *,
    checkpoint_url: str,
    sha256: str,
    miou: float,
    protocol: Mapping[str, Any],
    flaw: str | None = None,
    model_url: str | None = None,
) -> str:
    """Registers this checkpoint as a version of model `name` and returns the version. Repeated calls return the same one.

    The version's source is the checkpoint's URL. A server refuses the path of a folder outside its own artifacts, so a local
    checkpoint's source is the run's best_checkpoint.json; the tag `ccnet.checkpoint_url` has the URL in both cases.
    The alias `best` moves to it if its mIoU is higher than the current holder's under the same protocol and there is no `flaw`,
    which is a reason not to trust the score, such as a class without a label. The log says why the alias does not move.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = _checkpoint_tags(checkpoint_url, sha256, miou, protocol, flaw, model_url)
    holder = _holder(client, name)
    versions = client.search_model_versions(f"run_id = '{run_id}'")  # not by name, which may have any quotes
    version = next((v for v in versions if v.name == name and v.tags.get(CHECKPOINT_SHA256) == sha256), None)
    if version is None:
        remote = urllib.parse.urlsplit(checkpoint_url).scheme not in ("", "file")
        source = checkpoint_url if remote else f"runs:/{run_id}/best_checkpoint.json"
        version = client.create_model_version(name, source, run_id, tags=tags)
    if flaw or math.isnan(miou):
        reason = flaw or "its mIoU is not a number"
        log.warning("models:/%s@%s does not move to version %s: %s", name, ALIAS, version.version, reason)
    elif holder is None or (holder.tags.get(PROTOCOL) == tags[PROTOCOL] and miou > float(holder.tags[MIOU])):
        client.set_registered_model_alias(name, ALIAS, version.version)
    elif holder.tags.get(PROTOCOL) != tags[PROTOCOL]:
        log.warning("models:/%s@%s stays at version %s: its mIoU has another protocol", name, ALIAS, holder.version)
    return str(version.version)


def _holder(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that has the alias; None if no version has it, or only one that was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # of no alias, MLflow says the second
            raise
        return None


def find_checkpoint(uri: str, reference: str) -> Reference:
    """The checkpoint of a run id, `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises TrackingError."""
    return _find(uri, reference).checkpoint


def find_model(uri: str, reference: str) -> Delivered:
    """The delivered model of a run id, `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises TrackingError."""
    return _find(uri, reference)


def _find(uri: str, reference: str) -> Delivered:
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        if match := re.fullmatch(r"models:/([^/]+)@([^@/]+)", reference):
            tags = client.get_model_version_by_alias(*match.groups()).tags
        elif match := re.fullmatch(r"models:/([^/]+)/([0-9]+)", reference):
            tags = client.get_model_version(*match.groups()).tags
        elif re.fullmatch(r"[0-9a-f]{32}", reference):
            tags = client.get_run(reference).data.tags
        else:
            raise TrackingError(
                f"checkpoint {reference!r}: must be a run key, a run id, models:/NAME@ALIAS, models:/NAME/VERSION or an address "
                f"with a `/` (try ./{reference} for a folder)"
            )
    except MlflowException as error:
        where = "correct evaluate.checkpoint, or tracking.uri if it is of another MLflow"
        raise TrackingError(f"checkpoint {reference!r}: {error.message}: {where}") from error
    if CHECKPOINT_URL not in tags:
        raise TrackingError(
            f"checkpoint {reference!r}: names no checkpoint: a run has one after it has ended; until then, give its folder"
        )
    return Delivered(tags.get(MODEL_URL), Reference(tags[CHECKPOINT_URL], tags[CHECKPOINT_SHA256]))
