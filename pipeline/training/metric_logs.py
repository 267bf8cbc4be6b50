"""The metric logs of a run, on all its nodes: what MLflow did not take waits in the run's folder, and the next start sends it."""

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import TrackingError
from pipeline.storage.store import Store
from pipeline.tracking.client import connect, first_line, reached
from pipeline.tracking.delivery import logged_steps, missing_pictures, send_picture
from pipeline.tracking.metric_log import Delivered, MetricLog
from pipeline.tracking.spool import Row, unpack

if TYPE_CHECKING:  # the tasks on other nodes do not import all that a run needs
    from pipeline.training.run import Run

logger = logging.getLogger(__name__)

FOLDER = "metrics"
"""Below the run's folder: `unsent-<hash>.db`, `refused-<hash>.db`, and `sent-<hash>.db`: the points that MLflow has taken."""
PICTURES = "pictures"
"""Below the run's folder: the newest of each picture."""
COPIES_S = 10.0
"""Longest wait for the copies of pictures when a log is closed."""
NODES_S = 120.0
"""Longest wait for the records on other nodes."""


class Copies:
    """Writes pictures to a run's folder, in a thread of its own: a slow store holds up neither training nor MLflow.

    Only the newest of each name is written. One that fails is a warning, because MLflow has it.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._changed = store, threading.Condition()
        self._waiting: dict[str, bytes] = {}
        self._writes = False

    def add(self, name: str, png: bytes) -> None:
        """Has a picture written."""
        with self._changed:
            self._waiting[name] = png
            if not self._writes:
                self._writes = True
                threading.Thread(target=self._write, name="picture-copies", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Waits until all are written, or for `timeout_s` seconds; returns whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._writes, timeout_s)

    def _write(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._writes = False
                    self._changed.notify_all()
                    return
                name = next(iter(self._waiting))
                png = self._waiting.pop(name)
            try:
                self._store.write(f"{PICTURES}/{name}.png", png)
            except Exception as error:  # of any type, from any client
                logger.warning("the picture %s is in MLflow only: %s", name, error)


class RunLog(MetricLog):
    """The metric log of a run, whose folder keeps its points when it is closed, sent or not, and the newest pictures.

    kept: keys of the records that this log has stored there.
    """

    def __init__(self, uri: str, run_id: str, store: Store) -> None:
        self._copies, self._store = Copies(store), store
        self.kept: set[str] = set()
        super().__init__(uri, run_id, keep=self._store_records, copy=self._copies.add)

    def close(self, timeout_s: float = 30.0) -> int:
        unsent = super().close(timeout_s)
        self._copies.wait(COPIES_S)
        return unsent

    def _store_records(self, kind: str, data: bytes) -> str:
        key = f"{FOLDER}/{kind}-{hashlib.sha256(data).hexdigest()[:16]}.db"
        self._store.write(key, data)
        self.kept.add(key)
        return self._store.url(key)


def open_log(run: "Run") -> RunLog:
    """The metric log of a run."""
    return RunLog(run.tracking_uri, run.run_id, run.checkpoints)


def send_unsent(run: "Run", scores: Mapping[int, Mapping[str, float]] | None = None) -> int:
    """Sends what the run's earlier processes could not, from every node and from the run's folder; returns the number left.

    `scores`: metric points by step that MLflow must have at the end; those that it has already are not sent again. Raises
    StorageError if the run's folder cannot be read.
    """
    collect(run)
    return send_kept(run, scores).left


def send_kept(
    run: "Run", scores: Mapping[int, Mapping[str, float]] | None = None, kinds: tuple[str, ...] = ("unsent", "sent")
) -> Delivered:
    """Sends what this machine and the run's folder hold of the run and MLflow lacks: also points that it had taken before.

    `kinds`: of the records in the folder. Raises StorageError if it cannot be read.
    """
    store, log, taken = run.checkpoints, open_log(run), set()
    try:
        for key, rows in _records(store, kinds):
            log.add(rows)
            taken.add(key)
        for step, points in (scores or {}).items():
            log.metrics(points, step)
    finally:
        log.close()
    if log.kept and log.moved and not log.delivered.left:  # they are in the new records
        for key in taken - log.kept:
            store.delete(key)
    return log.delivered


def _records(store: Store, kinds: tuple[str, ...]) -> Iterator[tuple[str, list[Row]]]:
    for key in store.list(FOLDER):
        if key.startswith(tuple(f"{FOLDER}/{kind}-" for kind in kinds)):
            try:
                yield key, unpack(store.read(key))
            except TrackingError as error:
                logger.warning("%s is damaged and is not sent: %s", store.url(key), error)


def confirm(run: "Run") -> None:
    """Asks MLflow for what it has taken of the run, by one request for each metric; sends the newest pictures that it lacks.

    Raises TrackingError if it lacks anything: its answers were no promise.
    """
    uri, run_id, store = run.tracking_uri, run.run_id, run.checkpoints
    with reached(uri, "the end of the run could not be checked"):
        client = connect(uri)
        has = {(key, step) for key, steps in logged_steps(client, run_id).items() for step in steps}
        taken = {(row[2], row[1]) for _, rows in _records(store, ("sent",)) for row in rows}
        if lacking := sorted(taken - has):
            key, step = lacking[0]
            raise TrackingError(
                f"MLflow run {run_id} lacks {len(lacking)} of {len(taken)} metric points that the server has taken, the first "
                f"one {key} at step {step}: run the same command again, which sends them; if they are lacking again, the server "
                "does not store what it takes: look at its database"
            )
        copies = [key.removeprefix(f"{PICTURES}/").removesuffix(".png") for key in store.list(PICTURES)]
        for name in missing_pictures(client, run_id, copies):
            send_picture(client, run_id, name, store.read(f"{PICTURES}/{name}.png"))
        if lost := missing_pictures(client, run_id, copies):
            raise TrackingError(
                f"MLflow run {run_id} lacks pictures that the server has taken ({', '.join(lost)}): look at its artifact store, "
                "then run the same command again"
            )


def collect(run: "Run") -> None:
    """Has the records that killed processes left on the other nodes sent, or moved to the run's folder."""
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    tasks = [_task(node).remote(run.tracking_uri, run.run_id, run.checkpoints) for node in others]
    if not tasks:
        return
    done, late = ray.wait(tasks, num_returns=len(tasks), timeout=NODES_S)
    for task in done:
        try:
            ray.get(task)
        except Exception as error:  # a node that dies just now must not end a training
            logger.warning("the unsent metrics of a node are not sent: %s", first_line(error, run.tracking_uri))
    for task in late:
        ray.cancel(task, force=True)
        logger.warning("the unsent metrics of a node are not sent: it did not answer within %d s", NODES_S)


def _task(node: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(_send_from_this_node).options(scheduling_strategy=there)


def _send_from_this_node(uri: str, run_id: str, store: Store) -> None:
    RunLog(uri, run_id, store).close()
