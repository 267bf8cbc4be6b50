"""The records that wait for MLflow: a SQLite file in a folder of this user, or memory where no folder can be used.

All processes of a run on one machine share the run's file. A process holds a lock on it while it is open, so that the file is
removed when everything is sent and no other process uses it.
"""

import fcntl
import logging
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.errors import TrackingError

log = logging.getLogger(__name__)

# SQLite stores NaN as NULL. After a picture is sent, its record keeps an empty one.
TABLE = """
CREATE TABLE IF NOT EXISTS record (
    id INTEGER PRIMARY KEY, time INTEGER, step INTEGER, key TEXT, value REAL, picture BLOB, sent INTEGER DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS once ON record (key, step, picture IS NULL);
"""
INSERT = "INSERT OR IGNORE INTO record (time, step, key, value, picture) VALUES (?, ?, ?, ?, ?)"
STATES = {"unsent": 0, "sent": 1, "refused": 2}
"""Values of the column `sent`."""
Row = tuple[int, int, str, float | None, bytes | None]  # time, step, key, value, picture


class Spool(NamedTuple):
    """Open records: the connection, which threads must use one at a time, and its file and lock; both None in memory."""

    records: sqlite3.Connection
    file: Path | None = None
    lock: IO[str] | None = None


def own_folder() -> Path:
    """`<tempdir>/ccnet-metrics-<user id>`, which only this user may enter. Raises OSError if it cannot be made."""
    folder = Path(tempfile.gettempdir(), f"ccnet-metrics-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    folder.chmod(0o700)
    return folder


def open_spool(run_id: str, folder: str | Path | None) -> Spool:
    """The records of a run in `folder`, by default the user's own; in memory, with a warning, if it cannot be used."""
    try:
        place = Path(folder) if folder else own_folder()
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"{run_id}.db"
        remove_sent(place, but=file)
        lock = _lock(file)
        try:
            return Spool(_database(file), file, lock)
        except BaseException:
            lock.close()
            raise
    except (OSError, sqlite3.OperationalError) as error:
        log.warning(
            "metrics of run %s wait in memory, where a killed process loses them: %s; set TMPDIR to a folder with room that you "
            "may write to", run_id, error,
        )  # fmt: skip
        records = sqlite3.connect(":memory:", check_same_thread=False)
        records.executescript(TABLE)
        return Spool(records)


def close_spool(spool: Spool) -> None:
    """Closes the records, and removes the file if nothing in it waits and no other process uses it."""
    removable = spool.lock is not None and _alone(spool.lock) and _all_sent(spool.records)
    spool.records.close()
    if spool.lock is not None:
        if removable and spool.file is not None:
            _remove(spool.file)
        spool.lock.close()


def remove_sent(folder: Path, but: Path | None = None) -> None:
    """Removes the files that killed processes left, if everything in them is sent. Others wait for their run's next start.

    `but` stays: the run that is starting adds its points to those that it has sent.
    """
    for file in folder.glob("*.db"):
        if file == but:
            continue
        with suppress(OSError, sqlite3.Error), _lock(file, wait=False) as lock:
            if not _alone(lock):
                continue
            with closing(sqlite3.connect(file, timeout=1)) as records:
                done = _all_sent(records)
            if done:
                _remove(file)


def _all_sent(records: sqlite3.Connection) -> bool:
    return records.execute("SELECT 1 FROM record WHERE sent != 1 LIMIT 1").fetchone() is None


def pack(rows: Iterable[Row]) -> bytes:
    """Rows as bytes: the content of a SQLite file."""
    with closing(sqlite3.connect(":memory:")) as records:
        records.executescript(TABLE)
        with records:
            records.executemany(INSERT, rows)
        return records.serialize()


def unpack(data: bytes) -> list[Row]:
    """The rows that `pack` packed. Raises TrackingError for other bytes."""
    with closing(sqlite3.connect(":memory:")) as records:
        try:
            records.deserialize(data)
            return records.execute("SELECT time, step, key, value, picture FROM record ORDER BY id").fetchall()
        except sqlite3.DatabaseError as error:
            raise TrackingError(f"no metric records: {error}") from error


def _lock(file: Path, wait: bool = True) -> IO[str]:
    """A shared lock on the use of the file, until it is closed. It has a file of its own: SQLite locks the database."""
    name = file.with_suffix(".lock")
    while True:
        lock = name.open("a")
        fcntl.flock(lock, fcntl.LOCK_SH if wait else fcntl.LOCK_SH | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), name.stat()):
                return lock
        lock.close()  # removed by the process that had it before


def _alone(lock: IO[str]) -> bool:
    """Whether no other process uses the file; then none can open it until the lock is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(file: Path) -> None:
    for path in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm"), file.with_suffix(".lock")):
        path.unlink(missing_ok=True)


def _database(file: Path) -> sqlite3.Connection:
    """Opens the database. A damaged one is moved aside, because its loss must not stop training."""
    records = sqlite3.connect(file, timeout=30, check_same_thread=False)
    try:
        records.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {TABLE}")
    except sqlite3.DatabaseError as error:
        records.close()
        if isinstance(error, sqlite3.OperationalError):  # locked, or the disk is full
            raise
        aside = f"{file}.damaged-{time.time_ns()}"
        log.warning("%s is damaged (%s) and is kept as %s: its unsent metrics are lost", file, error, aside)
        for end in ("-wal", "-shm", ""):  # SQLite would apply a log that stays to the new database
            with suppress(FileNotFoundError):
                os.replace(f"{file}{end}", f"{aside}{end}")
        return _database(file)
    return records
