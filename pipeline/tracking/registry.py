"""MLflow's model registry: checkpoints are registered by reference.

A version holds the URL, the SHA-256 and the protocol of the mIoU. Its files are those of the MLflow model that was made of the
checkpoint, if there is one.
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
from pipeline.tracking.runs import LONGEST_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

CHECKPOINT_URL = "ccnet.checkpoint_url"
CHECKPOINT_SHA256 = "ccnet.checkpoint_sha256"
MODEL_URL = "ccnet.model_url"
MODEL_ID = "ccnet.model_id"
MIOU = "ccnet.miou"
PROTOCOL = "ccnet.protocol"
FLAW = "ccnet.flaw"
SPLIT = "split_fingerprint"
ALIAS, PREVIOUS, OLD_ALIAS = "champion", "previous", "best"
"""The best version, the one before it, and the name of the first in earlier releases."""
VERDICT, PENDING, PROMOTED = "ccnet.verdict", "not judged yet", "the best of its protocol when it was registered"
"""Tag of a version: why it did not get the alias, or one of the other two."""


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
    model_id: str | None
    """The copy of the folder in MLflow, if it has one."""


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
    model_id: str | None = None,
) -> None:
    """Records the run's best checkpoint so far by reference, in tags and best_checkpoint.json. Replaces the previous one.

    `flaw`: a reason not to trust the mIoU. `model_url`: the folder that was delivered. `model_id`: its copy in MLflow.
    """
    from mlflow.entities import RunTag

    client = connect(uri)
    tags = _checkpoint_tags(checkpoint_url, sha256, miou, protocol, flaw, model_url, model_id) | {"ccnet.step": str(step)}
    entry = {"checkpoint": checkpoint_url, "sha256": sha256, "step": step, "miou": miou, "protocol": dict(protocol)}
    entry |= {"flaw": flaw} if flaw else {}
    for tag in client.get_run(run_id).data.tags.keys() & {FLAW, MODEL_ID} - tags.keys():  # of the previous one
        client.delete_tag(run_id, tag)
    client.log_text(run_id, json.dumps(entry, indent=2, sort_keys=True) + "\n", "best_checkpoint.json")
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])


def _checkpoint_tags(
    url: str,
    sha256: str,
    miou: float,
    protocol: Mapping[str, Any],
    flaw: str | None,
    model_url: str | None,
    model_id: str | None,
) -> dict[str, str]:
    # Two scores are comparable if only the model differs, so the protocol to compare excludes the checkpoint's hash.
    rest = {key: value for key, value in protocol.items() if value != sha256}
    tags = {CHECKPOINT_URL: url, CHECKPOINT_SHA256: sha256, MIOU: repr(miou), PROTOCOL: json.dumps(rest, sort_keys=True)}
    optional = {FLAW: flaw, MODEL_URL: model_url, MODEL_ID: model_id}
    return tags | {key: value for key, value in optional.items() if value}


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
    model_id: str | None = None,
    card: str = "",
) -> str:
    """Registers this checkpoint as a version of model `name` and returns the version. Repeated calls return the same one.

    The version's source is the MLflow model `model_id`. Without one it is the checkpoint's URL, or the run's best_checkpoint.json
    for a local checkpoint, because a server refuses the path of a folder outside its own artifacts; the tag
    `ccnet.checkpoint_url` has the URL in all cases. `card`: the version's description, in Markdown.
    The alias `champion` moves to a new version if it is better than the one that has it, under the same protocol; see `_promote`.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = _checkpoint_tags(checkpoint_url, sha256, miou, protocol, flaw, model_url, model_id)
    versions = client.search_model_versions(f"run_id = '{run_id}'")  # not by name, which may have any quotes
    # A version without files cannot get them later: once MLflow has them, another version of the same checkpoint takes its place.
    version = next(
        (v for v in versions if v.name == name and v.tags.get(CHECKPOINT_SHA256) == sha256
         and (v.tags.get(MODEL_ID) or not model_id)), None
    )  # fmt: skip
    if version is None:
        source = _source(client, uri, run_id, checkpoint_url, model_id)
        tags |= {VERDICT: PENDING}
        version = client.create_model_version(name, source, run_id, tags, description=card[:LONGEST_TAG], model_id=model_id)
    number = str(version.version)
    if version.tags.get(VERDICT, PENDING) != PENDING:  # judged by an earlier call; the alias may have been moved by hand since
        return number
    verdict = _promote(client, name, number)
    client.set_model_version_tag(name, number, VERDICT, verdict)
    if verdict != PROMOTED:
        log.warning("models:/%s@%s is not version %s: %s", name, ALIAS, number, verdict)
    return number


def _source(client: "MlflowClient", uri: str, run_id: str, checkpoint_url: str, model_id: str | None) -> str:
    if model_id and uri.startswith("http"):
        return f"models:/{model_id}"
    if model_id:  # without a server, MLflow would look for the model in the database of the process's default
        return str(client.get_logged_model(model_id).artifact_location)
    remote = urllib.parse.urlsplit(checkpoint_url).scheme not in ("", "file")
    return checkpoint_url if remote else f"runs:/{run_id}/best_checkpoint.json"


def _promote(client: "MlflowClient", name: str, number: str) -> str:
    """Gives the alias `champion` to this version if it deserves it, and `previous` to the former one; returns the verdict.

    It deserves it if nothing speaks against its score and the score is higher than the holder's on the same images, predicted and
    counted in the same way. A holder without a score that can be compared, such as one that was set by hand, is replaced. Where
    nobody has the alias, because its version was deleted, the best comparable version gets it. A version that another driver has
    registered meanwhile, and has not judged yet, competes too.
    """
    versions = {str(version.version): version for version in _versions(client, name)}
    holder, own = _holder(client, name), versions[number]
    if flaw := _flaw(own):
        return flaw
    if holder and holder.tags.get(CHECKPOINT_SHA256) == own.tags[CHECKPOINT_SHA256] and MODEL_ID not in holder.tags:
        _give_alias(client, name, own, None)  # the same checkpoint, now with files
        return PROMOTED
    if holder and PROTOCOL in holder.tags and not same_protocol(holder, own):
        return f"its mIoU has another protocol than that of version {holder.version}, which has the alias"
    rivals = [
        version
        for version in versions.values()
        if not _flaw(version) and same_protocol(version, own) and (holder is None or version.tags.get(VERDICT) == PENDING)
    ]
    best = max([*rivals, own], key=lambda version: (float(version.tags[MIOU]), -int(version.version)))
    if holder and PROTOCOL in holder.tags and float(holder.tags[MIOU]) >= float(best.tags[MIOU]):
        best = holder
    _give_alias(client, name, best, holder)
    later = [
        version
        for version in _versions(client, name)
        if str(version.version) not in versions and not _flaw(version) and same_protocol(version, own)
    ]
    for version in later:  # its driver may have decided before this one did
        if float(version.tags[MIOU]) > float(best.tags[MIOU]):
            _give_alias(client, name, version, best)
            best = version
    if str(best.version) == number:
        return PROMOTED
    return f"its mIoU {float(own.tags[MIOU]):.4f} is not above the {float(best.tags[MIOU]):.4f} of version {best.version}"


def _give_alias(client: "MlflowClient", name: str, version: "ModelVersion", former: "ModelVersion | None") -> None:
    if former and former.version == version.version:
        return
    if former:
        client.set_registered_model_alias(name, PREVIOUS, str(former.version))
    client.set_registered_model_alias(name, ALIAS, str(version.version))
    if OLD_ALIAS in client.get_registered_model(name).aliases:  # of an earlier release; who reads it must not get an old model
        client.set_registered_model_alias(name, OLD_ALIAS, str(version.version))


def _versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    """All versions of a model that have a score of ours."""
    where = None if "'" in name else f"name = '{name}'"  # MLflow's filters have no sign for a quote in a name
    return [version for version in client.search_model_versions(where) if version.name == name and PROTOCOL in version.tags]


def _flaw(version: "ModelVersion") -> str:
    """Why the score of a version recommends nothing; empty if it does."""
    return version.tags.get(FLAW) or ("its mIoU is not a number" if math.isnan(float(version.tags[MIOU])) else "")


def same_protocol(one: "ModelVersion", other: "ModelVersion") -> bool:
    """Whether two scores are of the same images with the same classes, predicted and counted in the same way."""
    first, second = json.loads(one.tags[PROTOCOL]), json.loads(other.tags[PROTOCOL])
    # Releases before recorded the whole data set, in which other splits may differ.
    left_out = {"data", "data_fingerprint"} if SPLIT in first and SPLIT in second else {SPLIT}
    return {k: v for k, v in first.items() if k not in left_out} == {k: v for k, v in second.items() if k not in left_out}


def _holder(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that has the alias; None if no version has it, or only one that was deleted."""
    from mlflow.exceptions import MlflowException

    for alias in (ALIAS, OLD_ALIAS):
        try:
            return client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            # Of an alias that does not exist, MLflow says the second.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
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
    return Delivered(tags.get(MODEL_URL), Reference(tags[CHECKPOINT_URL], tags[CHECKPOINT_SHA256]), tags.get(MODEL_ID))
