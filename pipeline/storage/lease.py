"""One process at a time writes a folder: its lease lies there, is renewed while it runs, and names it to any other process.

No clock is compared with another machine's: a lease has expired when its content did not change for EXPIRES_S seconds of the
observer's own waiting, during which the store answered. A holder on the same machine is looked up there, so that a killed driver
can be followed at once. Stores need not support conditional writes: of two processes that take a free folder at the same moment
the last writer has it, and the other one finds that out by `Claim.check`.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import LeaseError, StorageError
from pipeline.storage.store import Store

LEASE = "lease.json"
RENEW_S = 10.0
"""Seconds between two renewals."""
EXPIRES_S = 60.0
"""Seconds without a renewal after which another process takes the folder. Two slow requests may delay a renewal by 40 s."""
POLL_S = 2.0
"""Seconds between two looks at the lease of another process."""
FREE = "wait for its end, or stop it; or give this one another name (name=...)"

logger = logging.getLogger(__name__)


class Holder(NamedTuple):
    """The process that holds a folder."""

    id: str
    host: str
    pid: int
    machine: str
    """Identifies the running kernel and the namespace of its process ids: within it, `pid` can be looked up."""
    started: str
    """When the process started, in the kernel's ticks: a process id may be used again."""
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.since}"

    @classmethod
    def this_process(cls) -> "Holder":
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return cls(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _machine(), _started(os.getpid()), since)

    def running(self) -> bool | None:
        """Whether the process still runs; None if that cannot be seen from here."""
        if self.machine != _machine() or not self.machine:
            return None
        return _started(self.pid) == self.started


class Claim(NamedTuple):
    """The hold on a folder, in any process that works for the holder."""

    store: Store
    id: str

    def check(self) -> None:
        """Raises LeaseError if another process has the folder, StorageError if the folder has no lease or cannot be read."""
        found = _read(self.store)
        if not found:
            raise StorageError(
                f"{self.store.url(LEASE)}: not found by host {socket.gethostname()}: a folder must be the same one on every node "
                "(a shared mount, or s3://bucket/prefix), and nobody may delete it during a run"
            )
        holder = _holder(found)
        if holder is None or holder.id != self.id:
            raise LeaseError(
                f"{self.store.root}: taken over by {holder or 'another process'}: this one writes nothing more there; look at "
                "the other one, which resumes from the newest checkpoint"
            )

    def lost(self) -> bool:
        """Whether another process has the folder."""
        try:
            self.check()
        except LeaseError:
            return True
        except StorageError:  # cannot be known now
            return False
        return False


@contextmanager
def held(store: Store) -> Iterator[Claim]:
    """Holds the folder `store` in this block. Raises LeaseError, which names the process that holds it.

    Waits up to EXPIRES_S for a holder that cannot be looked up from here, such as one of another machine.
    """
    own = Holder.this_process()
    _wait_until_free(store)
    _write(store, own, 0)
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(store, own, done), name="lease", daemon=True)
    keeper.start()
    claim = Claim(store, own.id)
    try:
        yield claim
    finally:
        done.set()
        keeper.join(RENEW_S)
        try:
            claim.check()
            store.delete(LEASE)
        except (LeaseError, StorageError) as error:  # the lease is another's or will expire
            logger.debug("lease not deleted: %s", error)


def holder_of(store: Store) -> Holder | None:
    """The process that may hold the folder; None if none does or if it is known to have ended."""
    found = _read(store)
    holder = _holder(found) if found else None
    return None if holder is None or holder.running() is False else holder


def _wait_until_free(store: Store) -> None:
    seen, waited = None, 0.0
    while found := _read(store):
        holder = _holder(found)
        alive = holder and holder.running()
        if (alive and holder and holder.pid != os.getpid()) or (seen and found != seen and alive is not False):
            raise LeaseError(f"{store.root}: in use by {holder or 'another process'}: {FREE}")
        if alive is False or waited >= EXPIRES_S:
            logger.info("%s: free, %s has ended or gave no sign for %g s", store.root, holder or "its holder", waited)
            return
        if not seen:
            logger.warning("%s: waiting up to %g s for a sign of %s", store.root, EXPIRES_S, holder or "its holder")
        seen = found
        time.sleep(POLL_S)
        waited += POLL_S  # not a clock: while the store does not answer, its holder cannot renew the lease either


def _keep(store: Store, own: Holder, done: threading.Event) -> None:
    renewals, failed = 0, False
    while not done.wait(RENEW_S):
        renewals += 1
        try:
            found = _read(store)
            holder = _holder(found) if found else None
            if holder and holder.id != own.id:
                logger.error("%s: taken over by %s; this process writes no further checkpoint there", store.root, holder)
                return
            _write(store, own, renewals)
            failed = False
        except (StorageError, OSError) as error:
            if not failed:
                logger.warning("the lease could not be renewed, which is tried again every %g s: %s", RENEW_S, error)
            failed = True


def _read(store: Store) -> bytes | None:
    try:
        return store.read(LEASE)
    except FileNotFoundError:
        return None


def _write(store: Store, holder: Holder, renewals: int) -> None:
    store.write(LEASE, json.dumps(holder._asdict() | {"renewals": renewals}, indent=1).encode())


def _holder(data: bytes) -> Holder | None:
    """The process that a lease names; None if this version cannot read it."""
    try:
        tree = json.loads(data)
        return Holder(**{name: tree[name] for name in Holder._fields})
    except (ValueError, KeyError, TypeError):
        return None


def _machine() -> str:
    """Identifies the kernel since its start, and the namespace of this process's id; empty where that is unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Ticks from the machine's start to the process's; empty if there is no such process or if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
