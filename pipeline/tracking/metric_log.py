"""Logs metrics and pictures without delaying training or losing any: a local database keeps them, a thread sends them to MLflow.

A point keeps the time at which it was recorded, even if it is sent several times: MLflow drops a point that it already has (same
key, time, value and step). A resumed run repeats the steps since its checkpoint, so only the first record of a key and step
counts, in this database and on the server. Resume is exact, so the repeated values are the same.
"""

import logging
import math
import socket
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.codec import encode_png
from pipeline.tracking.client import connect
from pipeline.tracking.delivery import (
    BATCH,
    Point,
    check_active,
    logged_steps,
    refusal,
    refused_items,
    send_picture,
    send_points,
)
from pipeline.tracking.keys import legal_key
from pipeline.tracking.spool import INSERT, STATES, Row, close_spool, open_spool, pack

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

IDLE_S = 1.0
LONGEST_WAIT_S = 30.0
LONGEST_PICTURE_NAME = 60
"""Characters of a picture's name, which becomes a file name of at most 255 bytes on the server."""


@dataclass
class Delivered:
    """What became of the records of a log."""

    points: int = 0
    """Metric points that were sent."""
    pictures: int = 0
    there: int = 0
    """Metric points that the server had before."""
    num_refused: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """Metric or picture -> why MLflow refuses it."""
    left: int = 0
    """Points and pictures that are not sent yet."""

    def __add__(self, other: "Delivered") -> "Delivered":
        return Delivered(
            self.points + other.points,
            self.pictures + other.pictures,
            self.there + other.there,
            self.num_refused + other.num_refused,
            self.refused | other.refused,
            self.left + other.left,
        )


class MetricLog:
    """The metrics of one run. `.metrics` takes microseconds, `.picture` milliseconds; records outlive the server and the process.

    folder: where records wait, in one database per run; by default a folder of this user in the temporary one, or memory where
    none can be made. keep: stores packed records, `unsent`, `refused` or `sent`, when the log is closed, and returns their
    address. The next start of the run adds them to its log (`.add`), which sends those that the server does not have. Without
    `keep` they stay in the folder, as after a crash, and those that are sent are dropped. delivered: what became of all of them.
    copy: gets name and bytes of each picture that MLflow has taken, the oldest first; it must not wait for anything.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        folder: str | Path | None = None,
        keep: Callable[[str, bytes], str] | None = None,
        copy: Callable[[str, bytes], object] | None = None,
    ) -> None:
        self._uri, self._run_id, self._keep, self._copy = uri, run_id, keep, copy
        self._spool = open_spool(run_id, folder)
        self._records, self._access = self._spool.records, threading.Lock()
        self._unwritten: list[Row] = []
        self._client: MlflowClient | None = None
        self._steps: defaultdict[str, set[int]] | None = None  # by metric, as the server has them
        self.delivered = Delivered()
        self.moved = True  # whether `keep` took all that it was given
        self._tried = 0  # id of the picture that was tried last
        self._closing, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metric-log", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records the points of one step, under legal keys. Infinity becomes NaN: MLflow's 1.8e308 flattens the chart."""
        numbers = {legal_key(key): float(value) for key, value in values.items()}
        self._write([(_now(), int(step), key, value if math.isfinite(value) else None, None) for key, value in numbers.items()])

    def picture(self, name: str, step: int, image: NDArray[np.uint8]) -> None:
        """Records a picture, uint8[H, W, 3] RGB."""
        self._write([(_now(), int(step), legal_key(name, LONGEST_PICTURE_NAME), None, encode_png(image))])

    def add(self, rows: Iterable[Row]) -> None:
        """Records what another process passed to its `keep`, unpacked."""
        self._write(list(rows))

    def close(self, timeout_s: float = 30.0) -> int:
        """Sends the remaining records for at most `timeout_s` seconds. Returns the number of unsent ones, which wait elsewhere.

        Refused records do not count: they are kept, but not sent again.
        """
        self._closing.set()
        self._thread.join(timeout_s)
        self._stop.set()
        self._write([])
        with self._access:
            self.delivered.left = self._hand_over("unsent", "are not sent to MLflow yet", self._unwritten)
            self._hand_over("refused", "were refused by MLflow", [])
            if self._keep:
                self._move("sent", self._of_kind("sent", "AND picture IS NULL"), [])
            close_spool(self._spool)
        return self.delivered.left

    def _hand_over(self, kind: str, state: str, unwritten: list[Row]) -> int:
        """Passes the records of one kind to `keep`, and says where they are; returns their number."""
        found = self._of_kind(kind)
        number = len(found) + len(unwritten)
        if not number:
            return 0
        again = ": the next start of the run sends them" if kind == "unsent" else ""
        place = f"are kept in {self._spool.file} on {socket.gethostname()}{again}" if self._spool.file else "are lost"
        if self._spool.file and unwritten:
            place += f"; {len(unwritten)} of them are lost"
        if address := self._move(kind, found, unwritten):
            place = f"are kept in {address}{again}"
        log.warning("%d metric points and pictures of run %s %s and %s", number, self._run_id, state, place)
        return number

    def _of_kind(self, kind: str, which: str = "") -> list[Any]:
        statement = f"SELECT id, time, step, key, value, picture FROM record WHERE sent = ? {which} ORDER BY id"
        return self._records.execute(statement, (STATES[kind],)).fetchall()

    def _move(self, kind: str, found: list[Any], unwritten: list[Row]) -> str | None:
        """Passes records to `keep` and drops them here; returns their address, None if that was not possible."""
        if not self._keep or not (found or unwritten):
            return None
        try:
            address = self._keep(kind, pack([*(row[1:] for row in found), *unwritten]))
            with self._records:
                self._records.executemany("DELETE FROM record WHERE id = ?", [row[:1] for row in found])
            return address
        except Exception as error:  # the end of training must not fail with its store or its disk
            log.warning("metrics of run %s could not be moved to the run's folder: %s", self._run_id, error)
            self.moved = False
            return None

    def _write(self, rows: list[Row]) -> None:
        """Adds rows without waiting for MLflow. If the disk is full, they stay in memory until the next call."""
        self._unwritten += rows
        try:
            with self._access, self._records:
                self._records.executemany(INSERT, self._unwritten)
            self._unwritten = []
        except sqlite3.OperationalError as error:
            log.warning("metrics of run %s wait in memory: %s", self._run_id, error)

    def _run(self) -> None:
        wait = IDLE_S
        while not self._stop.is_set():
            ending = self._closing.is_set()  # read before the last query, so that no record written before `close` is missed
            faults: list[Exception] = []
            sent = False
            for send in (self._send_points, self._send_pictures):  # neither holds up the other
                try:
                    sent = send() or sent
                except Exception as error:  # no error of MLflow or the network may disturb training
                    faults.append(error)
            if sent:
                wait = wait if faults else IDLE_S
            elif faults:
                level = logging.WARNING if wait == IDLE_S else logging.DEBUG
                log.log(level, "metrics of run %s wait, trying again: %s", self._run_id, faults[0])
                (self._stop if ending else self._closing).wait(IDLE_S if ending else wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
            elif ending:
                return
            else:
                self._closing.wait(IDLE_S)

    def _send_points(self) -> bool:
        """Sends up to BATCH points, the oldest first; False if there is none to send."""
        rows = self._query(
            "SELECT id, key, value, time, step FROM record WHERE NOT sent AND picture IS NULL ORDER BY id LIMIT ?", BATCH
        )
        if not rows:
            return False
        client = self._connected()
        ids = {Point(key, math.nan if value is None else value, at, step): number for number, key, value, at, step in rows}
        named = list(ids)
        refused: set[int] = set()
        if self._steps is None:
            self._steps = defaultdict(set, logged_steps(client, self._run_id))
        if fresh := [point for point in named if point.step not in self._steps[point.key]]:
            for point, reason in refused_items(fresh, partial(self._deliver, client)):
                refused.add(ids[point])
                self._set_aside(f"metric {point.key}", reason)
        for point in fresh:
            self._steps[point.key].add(point.step)
        self.delivered.points += len(fresh) - len(refused)
        self.delivered.there += len(named) - len(fresh)
        self._mark([row[0] for row in rows], refused)
        return True

    def _send_pictures(self) -> bool:
        """Sends the oldest picture; False if there is none to send. One that fails comes again after the others."""
        rows = self._query(
            "SELECT id, key, step, picture FROM record WHERE NOT sent AND picture IS NOT NULL ORDER BY id <= ?, id LIMIT 1",
            self._tried,
        )
        if not rows:
            return False
        self._tried = rows[0][0]
        client = self._connected()
        refused: set[int] = set()
        for (number, name, _, png), reason in refused_items(rows, partial(self._deliver_picture, client)):
            refused.add(number)
            self._set_aside(f"picture {name} of {len(png)} bytes", reason)
        for number, name, _, png in rows:
            if self._copy and number not in refused:
                self._copy(name, png)
        self.delivered.pictures += len(rows) - len(refused)
        self._mark([row[0] for row in rows], refused)
        return True

    def _connected(self) -> "MlflowClient":
        if self._client is None:
            client = connect(self._uri)
            check_active(client, self._run_id)
            self._client = client
        return self._client

    def _deliver(self, client: "MlflowClient", points: Sequence[Point]) -> None:
        try:
            send_points(client, self._run_id, points)
        except Exception as error:
            if refusal(error):
                check_active(client, self._run_id)  # of a deleted run, MLflow refuses every point
            raise

    def _deliver_picture(self, client: "MlflowClient", rows: Sequence[tuple[int, str, int, bytes]]) -> None:
        check_active(client, self._run_id)  # MLflow takes pictures of a deleted run
        for _, name, step, png in rows:
            send_picture(client, self._run_id, name, png, step)

    def _set_aside(self, what: str, reason: str) -> None:
        """Says once for each metric or picture that MLflow refuses it."""
        self.delivered.num_refused += 1
        if what not in self.delivered.refused:
            self.delivered.refused[what] = reason
            log.warning("MLflow refuses the %s of run %s, which is set aside; the rest is sent: %s", what, self._run_id, reason)

    def _query(self, statement: str, *values: int) -> list[Any]:
        with self._access:
            return self._records.execute(statement, values).fetchall()

    def _mark(self, numbers: Sequence[int], refused: set[int]) -> None:
        """Marks records as sent or refused. A sent picture keeps its record without its bytes."""
        sent = [(number,) for number in numbers if number not in refused]
        with self._access, self._records:
            self._records.executemany("UPDATE record SET sent = 2 WHERE id = ?", [(number,) for number in refused])
            self._records.executemany(
                "UPDATE record SET sent = 1, picture = CASE WHEN picture IS NULL THEN NULL ELSE x'' END WHERE id = ?", sent
            )


def _now() -> int:
    return time.time_ns() // 1_000_000
