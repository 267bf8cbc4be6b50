"""Metrics and pictures that never make training wait and never get lost: written to disk, sent to MLflow by a thread.

A record is one line, written with the timestamp it keeps for ever. The thread sends lines in order and then advances
an offset file. After a crash the next process on this machine sends what is left. MLflow drops a point it has already
(same key, timestamp, value, step), and a training resumed from a checkpoint repeats steps that were sent with other
timestamps: those are dropped here, by asking the server once which steps it has. Resume is exact, so nothing differs.
"""

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.tracking.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

BATCH = 1000
"""Points in one request; the server's limit."""
IDLE_S = 1.0
LONGEST_WAIT_S = 30.0


class MetricLog:
    """The metrics of one run. `.metrics` and `.picture` take microseconds and milliseconds and outlive the server and us.

    folder: where unsent records wait, by default `<tempdir>/ccnet-spool`; each run has a folder of its own in it. Records
    that a dead machine kept to itself come again for the steps after the last checkpoint.
    """

    def __init__(self, uri: str, run_id: str, folder: str | Path | None = None) -> None:
        self._uri, self._run_id = uri, run_id
        self._folder = Path(folder or Path(tempfile.gettempdir(), "ccnet-spool")) / run_id
        self._folder.mkdir(parents=True, exist_ok=True)
        self._journals = sorted(self._folder.glob("*.jsonl"))  # predecessors', oldest first
        own = self._folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
        self._file = os.open(own, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._journals.append(own)
        self._lock = open(self._folder / "lock", "w")  # noqa: SIM115 the thread closes it, at its end
        self._unwritten = b""
        self._client: MlflowClient | None = None
        self._steps: defaultdict[str, set[int]] = defaultdict(set)
        self._closing, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metric-log", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records points of one step. Infinity becomes NaN: MLflow would store 1.8e308 and flatten the chart.

        A key's characters that MLflow refuses become `_`, so that one odd class name cannot stop all that follows.
        """
        numbers = {re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)[:250]: float(value) for key, value in values.items()}
        finite = {key: value if math.isfinite(value) else math.nan for key, value in numbers.items()}
        self._write({"step": int(step), "time": _now(), "metrics": finite})

    def picture(self, name: str, step: int, image: NDArray[np.uint8]) -> None:
        """Records a picture, uint8[H, W, 3] RGB."""
        from PIL import Image

        name = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
        png = self._folder / f"{name.replace('/', '~')}-{step}-{time.time_ns()}.png"
        try:
            Image.fromarray(image).save(png, compress_level=3)
        except OSError as error:
            log.warning("picture %s of step %d is lost: %s", name, step, error)
            return
        self._write({"step": int(step), "time": _now(), "picture": name, "file": png.name})

    def close(self, timeout_s: float = 30.0) -> int:
        """Sends what is left for at most so long; returns the number of records still unsent, which stay on disk."""
        self._closing.set()
        self._thread.join(timeout_s)
        self._stop.set()
        os.close(self._file)
        self._file = -1
        left = bool(self._unwritten) + sum(_unsent(journal) for journal in self._journals)
        if left:
            log.warning("%d records of run %s are unsent and wait in %s", left, self._run_id, self._folder)
        return left

    def _write(self, record: Mapping[str, Any]) -> None:
        """Appends one line without waiting for the disk; the thread syncs. A full disk keeps it in memory until the next."""
        self._unwritten += json.dumps(record).encode() + b"\n"
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError as error:
            log.warning("metrics of run %s wait in memory: %s", self._run_id, error)

    def _run(self) -> None:
        with self._lock:
            wait = IDLE_S
            while not self._stop.is_set():
                closing = self._closing.is_set()  # read before the last look: a record written since is then not missed
                try:
                    # Held for life: a predecessor that still runs is still sending, and nobody sends for it meanwhile.
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._send_some():
                        wait = IDLE_S
                    elif closing:
                        return self._tidy()
                    else:
                        self._closing.wait(IDLE_S)
                except Exception as error:  # whatever MLflow or the network raises, training must not notice, and we go on
                    level = logging.WARNING if wait == IDLE_S else logging.DEBUG
                    log.log(level, "metrics of run %s wait on disk, trying again: %s", self._run_id, error)
                    (self._stop if closing else self._closing).wait(IDLE_S if closing else wait)
                    wait = min(2 * wait, LONGEST_WAIT_S)

    def _send_some(self) -> bool:
        """Sends the next records and advances the offset; False when there are none."""
        journal = self._journals[0]
        start = _offset(journal)
        records, end = _read(journal, start)
        if not records:
            if len(self._journals) > 1:  # a predecessor's, done but perhaps for a line it was killed in the middle of
                _remove(self._journals.pop(0))
                return True
            return False
        if self._client is None:
            client = connect(self._uri)
            self._steps.update(logged_steps(client, self._run_id))
            self._client = client
        os.fsync(self._file)
        if "picture" in records[0]:
            self._send_picture(self._client, records[0])
        else:
            self._send_points(self._client, records)
        _write_whole(_offset_file(journal), str(end))
        return True

    def _send_points(self, client: "MlflowClient", records: list[dict[str, Any]]) -> None:
        fresh: dict[tuple[str, int], Point] = {}
        for record in records:
            for key, value in record["metrics"].items():
                if record["step"] not in self._steps[key]:
                    fresh.setdefault((key, record["step"]), Point(key, value, record["time"], record["step"]))
        points = list(fresh.values())
        for first in range(0, len(points), BATCH):
            send_points(client, self._run_id, points[first : first + BATCH])
        for key, step in fresh:
            self._steps[key].add(step)

    def _send_picture(self, client: "MlflowClient", record: dict[str, Any]) -> None:
        png = self._folder / record["file"]
        if png.exists():  # else it was sent, and only the offset was not written
            send_picture(client, self._run_id, record["picture"], png, record["step"])
            png.unlink()

    def _tidy(self) -> None:
        for journal in self._journals:
            _remove(journal)


def _read(journal: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """The next whole lines from byte `start`: one picture, or metrics of up to BATCH points; and the byte after them."""
    records: list[dict[str, Any]] = []
    points, end = 0, start
    with contextlib.suppress(FileNotFoundError), open(journal, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            points += len(record.get("metrics", ()))
            if records and ("picture" in record or points > BATCH):
                break
            records.append(record)
            end += len(line)
            if "picture" in record:
                break
    return records, end


def _unsent(journal: Path) -> int:
    if not journal.exists():
        return 0
    with open(journal, "rb") as file:
        file.seek(_offset(journal))
        return sum(1 for _ in file)


def _offset_file(journal: Path) -> Path:
    return journal.with_suffix(".offset")


def _offset(journal: Path) -> int:
    file = _offset_file(journal)
    return int(file.read_text()) if file.exists() else 0


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)  # never half an offset, whenever we are killed


def _remove(journal: Path) -> None:
    journal.unlink(missing_ok=True)
    _offset_file(journal).unlink(missing_ok=True)


def _now() -> int:
    return time.time_ns() // 1_000_000


class Point(NamedTuple):
    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970; part of a point's identity in MLflow, so a repeated point repeats it."""
    step: int


def logged_steps(client: "MlflowClient", run_id: str) -> dict[str, set[int]]:
    """Steps the server already has, by metric."""
    keys = client.get_run(run_id).data.metrics
    return {key: {point.step for point in client.get_metric_history(run_id, key)} for key in keys}


def send_points(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> None:
    """Sends at most 1000 points in one request. Sending the same points again changes nothing."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def send_picture(client: "MlflowClient", run_id: str, name: str, png: Path, step: int) -> None:
    """Sends a picture as `<name>/step_000100.png`, and as `<name>.png`, the latest. Sent again, it replaces itself.

    Not MlflowClient.log_image: a random part of its names shows a picture sent again twice, and MLflow's page of charts
    covers such pictures with the text of a run's many parameters.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in (Path(name, f"step_{step:06d}.png"), Path(f"{name}.png")):
            copy = shutil.copyfile(png, Path(folder, path.name))
            client.log_artifact(run_id, str(copy), str(path.parent) if path.parent != Path() else None)
