"""Logs metrics and pictures without delaying training or losing any: a local database keeps them, a thread sends them to MLflow.

A point keeps the time at which it was recorded, even if it is sent several times: MLflow drops a point that it already has (same
key, time, value and step). A resumed run repeats the steps since its checkpoint, so only the first record of a key and step
counts, in this database and on the server. Resume is exact, so the repeated values are the same.
"""

import logging
import math
import os
import re
import sqlite3
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.images.codec import encode_png
from pipeline.tracking.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

BATCH = 1000
"""Largest number of points in one request: the server's limit."""
IDLE_S = 1.0
LONGEST_WAIT_S = 30.0
# SQLite stores NaN as NULL. After a picture is sent, its record keeps an empty one.
TABLE = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS record (
    id INTEGER PRIMARY KEY, time INTEGER, step INTEGER, key TEXT, value REAL, picture BLOB, sent INTEGER DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS once ON record (key, step, picture IS NULL);
"""
Row = tuple[int, int, str, float | None, bytes | None]  # time, step, key, value, picture


class Point(NamedTuple):
    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970. Part of a point's identity in MLflow, so it stays the same when the point is sent again."""
    step: int


class MetricLog:
    """The metrics of one run. `.metrics` takes microseconds, `.picture` milliseconds; records outlive the server and the process.

    folder: where records wait, by default `<tempdir>/ccnet-spool`, in one database per run. After a crash, the next process on
    this machine sends the remaining records. If the machine is lost, a resumed run records the steps after its checkpoint again.
    """

    def __init__(self, uri: str, run_id: str, folder: str | Path | None = None) -> None:
        self._uri, self._run_id = uri, run_id
        self._file = Path(folder or Path(tempfile.gettempdir(), "ccnet-spool"), f"{run_id}.db")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._records = _open(self._file)
        self._unwritten: list[Row] = []
        self._client: MlflowClient | None = None
        self._steps: defaultdict[str, set[int]] = defaultdict(set)
        self._closing, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metric-log", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records the points of one step. Infinity becomes NaN: MLflow would store 1.8e308 and flatten the chart.

        Characters of a key that MLflow refuses become `_`: otherwise one such class name would block all later records.
        """
        numbers = {re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)[:250]: float(value) for key, value in values.items()}
        self._write([(_now(), int(step), key, value if math.isfinite(value) else None, None) for key, value in numbers.items()])

    def picture(self, name: str, step: int, image: NDArray[np.uint8]) -> None:
        """Records a picture, uint8[H, W, 3] RGB."""
        self._write([(_now(), int(step), re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII), None, encode_png(image))])

    def close(self, timeout_s: float = 30.0) -> int:
        """Sends the remaining records for at most `timeout_s` seconds. Returns the number of unsent ones, which stay on disk."""
        self._closing.set()
        self._thread.join(timeout_s)
        self._stop.set()
        (number,) = self._records.execute("SELECT count(*) FROM record WHERE NOT sent").fetchone()
        self._records.close()
        unsent = int(number) + len(self._unwritten)
        if unsent:
            log.warning("%d records of run %s are unsent and wait in %s", unsent, self._run_id, self._file)
        return unsent

    def _write(self, rows: list[Row]) -> None:
        """Adds rows without waiting for the disk. If the disk is full, they stay in memory until the next call."""
        self._unwritten += rows
        try:
            with self._records:
                self._records.executemany(
                    "INSERT OR IGNORE INTO record (time, step, key, value, picture) VALUES (?, ?, ?, ?, ?)", self._unwritten
                )
            self._unwritten = []
        except sqlite3.OperationalError as error:
            log.warning("metrics of run %s wait in memory: %s", self._run_id, error)

    def _run(self) -> None:
        with closing(sqlite3.connect(self._file, timeout=30)) as records:  # each thread needs its own connection
            wait = IDLE_S
            while not self._stop.is_set():
                ending = self._closing.is_set()  # read before the last query, so that no record written before `close` is missed
                try:
                    if self._send_some(records):
                        wait = IDLE_S
                    elif ending:
                        return
                    else:
                        self._closing.wait(IDLE_S)
                except Exception as error:  # no error of MLflow or the network may disturb training
                    level = logging.WARNING if wait == IDLE_S else logging.DEBUG
                    log.log(level, "metrics of run %s wait on disk, trying again: %s", self._run_id, error)
                    (self._stop if ending else self._closing).wait(IDLE_S if ending else wait)
                    wait = min(2 * wait, LONGEST_WAIT_S)

    def _send_some(self, records: sqlite3.Connection) -> bool:
        """Sends up to BATCH points and one picture, the oldest first; False if there is nothing to send."""
        points = records.execute(
            "SELECT id, key, value, time, step FROM record WHERE NOT sent AND picture IS NULL ORDER BY id LIMIT ?", (BATCH,)
        ).fetchall()
        pictures = records.execute(
            "SELECT id, key, step, picture FROM record WHERE NOT sent AND picture IS NOT NULL ORDER BY id LIMIT 1"
        ).fetchall()
        if not points and not pictures:
            return False
        if self._client is None:
            client = connect(self._uri)
            self._steps.update(logged_steps(client, self._run_id))
            self._client = client
        named = [Point(key, math.nan if value is None else value, at, step) for _, key, value, at, step in points]
        if fresh := [point for point in named if point.step not in self._steps[point.key]]:
            send_points(self._client, self._run_id, fresh)
        for point in fresh:
            self._steps[point.key].add(point.step)
        for _, name, step, png in pictures:
            send_picture(self._client, self._run_id, name, png, step)
        with records:
            records.executemany("UPDATE record SET sent = 1 WHERE id = ?", [row[:1] for row in points])
            records.executemany("UPDATE record SET sent = 1, picture = x'' WHERE id = ?", [row[:1] for row in pictures])
        return True


def logged_steps(client: "MlflowClient", run_id: str) -> dict[str, set[int]]:
    """Steps that the server already has, by metric."""
    keys = client.get_run(run_id).data.metrics
    return {key: {point.step for point in client.get_metric_history(run_id, key)} for key in keys}


def send_points(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> None:
    """Sends at most 1000 points in one request. Sending the same points again changes nothing."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def send_picture(client: "MlflowClient", run_id: str, name: str, png: bytes, step: int) -> None:
    """Sends a picture as `<name>/step_000100.png`, and as `<name>.png`, the latest. Sending it again replaces it.

    MlflowClient.log_image is not used: its file names have a random part, so a picture that is sent again would appear twice,
    and MLflow's page of charts covers such pictures with the text of a run's many parameters.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in (Path(name, f"step_{step:06d}.png"), Path(f"{name}.png")):
            file = Path(folder, path.name)
            file.write_bytes(png)
            client.log_artifact(run_id, str(file), str(path.parent) if path.parent != Path() else None)


def _open(file: Path) -> sqlite3.Connection:
    """Opens the database. A damaged one is moved aside, because its loss must not stop training."""
    records = sqlite3.connect(file, timeout=30)
    try:
        records.executescript(TABLE)
    except sqlite3.DatabaseError as error:
        records.close()
        if isinstance(error, sqlite3.OperationalError):  # locked, or the disk is full
            raise
        aside = f"{file}.damaged-{time.time_ns()}"
        log.warning("%s is damaged (%s) and is kept as %s: its unsent metrics are lost", file, error, aside)
        for end in ("-wal", "-shm", ""):  # SQLite would apply a log that stays to the new database
            with suppress(FileNotFoundError):
                os.replace(f"{file}{end}", f"{aside}{end}")
        return _open(file)
    return records


def _now() -> int:
    return time.time_ns() // 1_000_000
