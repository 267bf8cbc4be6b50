"""Checks whether a run can start or resume: MLflow, and the checkpoint to resume from."""

from typing import Any

from pipeline.checkpoints.retention import latest
from pipeline.config.config import Config
from pipeline.config.run_key import changed_settings, shaping
from pipeline.data.manifest import Manifest
from pipeline.errors import CheckpointError, StorageError, TrackingError
from pipeline.preflight.findings import Finding
from pipeline.storage import lease
from pipeline.storage.store import Store
from pipeline.tracking.client import check_server, tracking_uri
from pipeline.tracking.provenance import environment, other_code


def tracking(config: Config) -> list[Finding]:
    """An MLflow server that cannot be used or does not answer."""
    try:
        check_server(tracking_uri(config.tracking))
    except TrackingError as error:
        return [Finding("error", str(error))]
    return []


def newest(store: Store) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The record in the checkpoint from which a run in this folder resumes, and what is wrong with newer ones.

    The record is None for a new run, and if no checkpoint can be read, which is an error.
    """
    try:
        found, skipped = latest(store)
    except (CheckpointError, StorageError) as error:
        return None, [Finding("error", str(error))]
    return found, [Finding("warning", line) for line in skipped]


def in_use(store: Store) -> list[Finding]:
    """Another process that trains the run of the folder `store`, or may do so."""
    holder = lease.holder_of(store)
    if holder is None:
        return []
    if holder.running():
        return [Finding("error", f"{store.root}: in use by {holder}", lease.FREE)]
    fix = f"jobs.train waits up to {lease.EXPIRES_S:g} s for a sign of it"
    return [Finding("warning", f"{store.root}: held by {holder}, which cannot be looked up from here", fix)]


def resume(config: Config, manifest: Manifest, store: Store, newest: dict[str, Any] | None) -> list[Finding]:
    """A run to resume that does not exist, or that was made with other settings or data.

    `newest`: the record in the newest checkpoint of the run's folder `store`; None when there is none.
    """
    named = config.train.resume
    if newest is None:
        what = f"train.resume = {named}: no checkpoint in {store.url('')}"
        return [Finding("error", what, "correct it, or leave it out")] if named else []
    if missing := [part for part in ("config", "protocol") if part not in newest]:
        what = f"{store.url('')}: the checkpoint of step {newest['step']} lacks {' and '.join(missing)}: another program wrote it"
        return [Finding("error", what, "use that program, or give the new run another name (name=...)")]
    changed = changed_settings(shaping(newest["config"]), shaping(config.record()))
    # These decide what a validation's mIoU means (law 8).
    protocol = {"data_fingerprint": manifest.fingerprint, "image_scale": config.evaluate.scale}
    before = newest["protocol"]
    changed += [f"{key} was {before[key]!r} and is {value!r}" for key, value in protocol.items() if before[key] != value]
    if not changed:
        other = other_code(newest.get("environment", {}), environment())
        if not other or newest["step"] >= config.train.steps:  # a finished run only shows its result
            return []
        what = f"{store.url('')}: made with other code up to step {newest['step']}: {'; '.join(other)}"
        return [Finding("warning", what, "the same commit and versions give the weights of a run that never stopped")]
    what = f"{store.url('')}: at step {newest['step']} {'; '.join(changed)}; a run cannot change these"
    return [
        Finding(
            "error", what, "set them back, or leave out train.resume" if named else "give the new run another name (name=...)"
        )
    ]
