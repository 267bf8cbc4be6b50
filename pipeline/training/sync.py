"""Brings MLflow up to date with a run that nobody trains: its points and pictures, and the status of its MLflow run."""

from typing import NamedTuple

from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.data.manifest import read_manifest
from pipeline.errors import TrackingError
from pipeline.storage import lease
from pipeline.storage.store import Store, open_store
from pipeline.tracking import runs
from pipeline.tracking.client import check_server, tracking_uri
from pipeline.tracking.metric_log import Delivered
from pipeline.training.best import record_end
from pipeline.training.metric_logs import FOLDER, confirm, send_kept
from pipeline.training.run import Run
from pipeline.training.train import exhausted_budget, stop_reason
from pipeline.training.validation import pending_validations

UNFINISHED = "its process has ended before the training was complete; run the same command to resume"


class Synced(NamedTuple):
    """What `sync` has done."""

    run_id: str
    tracking_uri: str
    sent: Delivered
    kept_url: str
    """Folder of the records that MLflow refuses."""
    before: str
    """Status of the MLflow run, as it was."""
    status: str


def sync(config: Config) -> Synced:
    """Sends what the run of this configuration has left, also what MLflow refused before, and corrects the run's status.

    A complete training that is not FINISHED is recorded as at its end: model, description, page. One that is not complete and
    still RUNNING becomes KILLED. Raises LeaseError if another process trains the run, TrackingError if MLflow is away, has no
    such run or does not take everything.
    """
    check_server(uri := tracking_uri(config.tracking))
    store = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    _of(config, store)
    manifest = read_manifest(open_store(config.data_url, config.storage))
    with lease.held(store) as claim:
        run_id, before = _of(config, store)  # as its last process has left it
        run = Run(config, manifest, store, uri, run_id, claim)
        sent = send_all(run)
        status = _settled(run, before)
    return Synced(run_id, uri, sent, store.url(FOLDER), before, status)


def send_all(run: Run) -> Delivered:
    """Sends what a run's folder and this machine hold of it, also what MLflow refused before.

    Raises TrackingError if MLflow does not take everything.
    """
    sent = send_kept(run, kinds=("unsent", "sent", "refused"))
    if sent.left:
        raise TrackingError(
            f"MLflow has not taken {sent.left} metric points and pictures of run {run.run_id}: run the same command again"
        )
    confirm(run)
    return sent


def _of(config: Config, store: Store) -> tuple[str, str]:
    """Id and status of the run in MLflow."""
    if found := runs.find_run(config):
        return found.info.run_id, found.info.status
    if checkpoint.newest_progress(store) is None and not store.list(FOLDER):
        raise TrackingError(f"{config.run_key}: no such run, in MLflow or in {store.root}; python -m jobs.train starts it")
    raise TrackingError(
        f"{config.run_key}: MLflow has no run of it (deleted, or another server); python -m jobs.train with the same "
        "configuration records it in a new one, with the points that the run's folder holds"
    )


def _settled(run: Run, status: str) -> str:
    """Makes the status of the MLflow run that of the training; returns it."""
    newest = checkpoint.newest_progress(run.checkpoints)
    complete = newest and (run.done() or exhausted_budget(run)) and not pending_validations(run, newest["step"])
    if complete and status != "FINISHED":
        record_end(run, stop_reason(run))
        return "FINISHED"
    if not complete and status == "RUNNING":
        runs.finish_run(run.tracking_uri, run.run_id, "KILLED", UNFINISHED)
        return "KILLED"
    return status
