"""Brings MLflow up to date with a search that nobody runs: points and pictures of all its trials, and every status."""

import logging
from typing import NamedTuple

from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.data.manifest import read_manifest
from pipeline.errors import CheckpointError, RunFailed, TrackingError
from pipeline.storage import lease
from pipeline.storage.store import Store, open_store
from pipeline.tracking import runs
from pipeline.tracking.client import check_server, tracking_uri
from pipeline.training.metric_logs import FOLDER
from pipeline.training.run import Run
from pipeline.training.sync import Synced, send_all
from pipeline.tuning.best import record_end
from pipeline.tuning.journal import SEARCH, Journal
from pipeline.tuning.progress import Progress, plan_of, statuses
from pipeline.tuning.report import show
from pipeline.tuning.trials import trial_config, trial_store

logger = logging.getLogger(__name__)

UNFINISHED = "its process has ended before the search was complete; run the same command to resume"


class SyncedSearch(NamedTuple):
    """What `sync` has done."""

    whole: Synced
    """The search: its MLflow run, and the points and pictures of all runs together."""
    trials: dict[str, Synced]
    """Those that have an MLflow run, by name."""
    without_run: list[str]
    """Names of trials that have points in their folder and no MLflow run."""


def sync(config: Config) -> SyncedSearch:
    """Sends what the search of this configuration and its trials have left, and corrects the status of all their runs.

    A complete search that is not FINISHED is recorded as at its end: model, page. One that is not complete and still RUNNING
    becomes KILLED. Raises LeaseError if another process runs the search, TrackingError if MLflow is away, has no such search or
    does not take everything.
    """
    check_server(uri := tracking_uri(config.tracking))
    key = config.search_key
    store = open_store(f"{config.runs_url}/{key}", config.storage)
    _of(config, store)
    manifest = read_manifest(open_store(config.data_url, config.storage))
    with lease.held(store) as claim:
        run_id, before = _of(config, store)  # as its last process has left it
        journal = Journal(store)
        config = override(config, {"train.threads": config.train.threads or journal.facts.get("threads")})
        parent = Run(config, manifest, store, uri, run_id, claim)
        progress = Progress(parent, key, journal, plan_of(config, bool(journal.facts.get("rungs_wait"))), show)
        trials, without_run = _synced_trials(progress)
        sent = sum((trial.sent for trial in trials.values()), send_all(parent))
        status = _settled(progress, before)
    whole = Synced(run_id, uri, sent, f"{config.runs_url}/{key}*/{FOLDER}", before, status)
    return SyncedSearch(whole, trials, without_run)


def _of(config: Config, store: Store) -> tuple[str, str]:
    """Id and status of the search's run in MLflow."""
    if found := runs.find_run(config, config.search_key):
        return found.info.run_id, found.info.status
    if not store.exists(SEARCH):
        raise TrackingError(
            f"{config.search_key}: no such search, in MLflow or in {store.root}; python -m jobs.tune starts it; tune.space={{}} "
            "means a training of these settings"
        )
    raise TrackingError(
        f"{config.search_key}: MLflow has no run of it (deleted, or another server); python -m jobs.tune with the same "
        "configuration records it in a new one"
    )


def _synced_trials(progress: Progress) -> tuple[dict[str, Synced], list[str]]:
    parent, key = progress.parent, progress.key
    after = statuses(key, progress.journal, ())
    synced, without_run = {}, []
    for name, trial in sorted(progress.journal.trials.items()):
        config, run_key = trial_config(parent.config, trial.overrides), f"{key}-{name}"
        folder = trial_store(config, key, name)
        if found := runs.find_run(parent.config, run_key):
            run = parent._replace(config=config, checkpoints=folder, run_id=found.info.run_id)
            status = after[run_key][0]
            synced[name] = Synced(run.run_id, run.tracking_uri, send_all(run), folder.url(FOLDER), found.info.status, status)
        elif folder.list(FOLDER):
            without_run.append(name)
    return synced, without_run


def _settled(progress: Progress, status: str) -> str:
    """Makes the status of all MLflow runs that of the search and its trials; returns that of the search."""
    parent, exhausted = progress.parent, progress.exhausted()
    complete = progress.journal.trials and (exhausted or progress.next_stage(()) is None)
    if complete and status != "FINISHED":
        try:
            record_end(progress)
        except (RunFailed, CheckpointError) as error:  # no trial has a model: the search has failed, this command has not
            logger.warning("%s", error)
            progress.show()
            runs.finish_run(parent.tracking_uri, parent.run_id, "FAILED", str(error))
            return "FAILED"
        return "FINISHED"
    if not complete and status == "RUNNING":
        progress.show()
        runs.finish_run(parent.tracking_uri, parent.run_id, "KILLED", UNFINISHED)
        return "KILLED"
    progress.settle()
    return status
