"""Two processes and one folder: who writes it, how long the other one waits, and what it reads."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import LeaseError, StorageError
from pipeline.storage import lease
from pipeline.storage.lease import LEASE, Holder, held, holder_of
from pipeline.storage.store import Store
from tests.support.holder import holder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"RENEW_S": 0.1, "POLL_S": 0.05, "EXPIRES_S": 1.0}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def other(store: Store) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the folder."""
    with holder(store.root) as process:
        yield process


def elsewhere(store: Store, **changes: object) -> bytes:
    """Writes the lease of a process that cannot be looked up from here; returns it."""
    holder = Holder.this_process()._replace(id="b", host="gpu-2", pid=4711, machine="another pid:[1]")
    store.write(LEASE, json.dumps(holder._asdict() | changes).encode())
    return store.read(LEASE)


def test_a_folder_that_a_running_process_holds_is_refused_at_once_and_the_process_is_named(
    store: Store, other: "subprocess.Popen[str]"
) -> None:
    started = time.monotonic()
    with pytest.raises(LeaseError) as refused, held(store):
        pass
    assert time.monotonic() - started < 0.5
    who = rf"process {other.pid} on host \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    end = r"wait for its end, or stop it; or give this one another name \(name=\.\.\.\)"
    assert re.fullmatch(rf"{store.root}: in use by {who}: {end}", str(refused.value))
    other.send_signal(signal.SIGSTOP)  # it may go on at any time
    with pytest.raises(LeaseError), held(store):
        pass
    assert holder_of(store)


def test_a_killed_process_is_followed_at_once_and_the_follower_leaves_no_lease(
    store: Store, other: "subprocess.Popen[str]"
) -> None:
    other.kill()  # not yet waited for: a zombie does not hold anything
    while holder_of(store):
        time.sleep(0.01)
    started = time.monotonic()
    with held(store) as claim:
        assert time.monotonic() - started < 0.5
        claim.check()
    assert store.list() == []


def test_a_process_of_another_machine_is_refused_once_it_renews_and_followed_once_it_does_not(store: Store) -> None:
    elsewhere(store)
    renewed = threading.Timer(0.3, lambda: elsewhere(store, renewals=2))
    renewed.start()
    with pytest.raises(LeaseError, match=r"in use by process 4711 on host gpu-2 since"), held(store):
        pass
    renewed.join()
    started = time.monotonic()
    with held(store):
        assert 1.0 <= time.monotonic() - started < 5


def test_a_lease_of_another_version_counts_until_it_expires(store: Store) -> None:
    store.write(LEASE, b'{"version": 9}')
    renewed = threading.Timer(0.3, lambda: store.write(LEASE, b'{"version": 9, "renewals": 1}'))
    renewed.start()
    with pytest.raises(LeaseError, match="in use by another process"), held(store):
        pass
    renewed.join()
    with held(store):
        pass


def test_a_process_that_was_replaced_writes_nothing_more_and_leaves_the_others_lease(store: Store) -> None:
    with held(store) as claim:
        before = store.read(LEASE)
        while store.read(LEASE) == before:
            time.sleep(0.02)
        theirs = elsewhere(store)
        time.sleep(0.4)
        assert claim.lost()
        with pytest.raises(LeaseError, match=r"taken over by process 4711 on host gpu-2 .*: this one writes nothing more there"):
            claim.check()
    assert store.read(LEASE) == theirs


def test_of_processes_that_take_a_free_folder_at_the_same_moment_one_keeps_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = threading.Barrier(2)
    monkeypatch.setattr(lease, "_wait_until_free", lambda store: met.wait())  # both have seen it free
    lost: list[bool] = []

    def take() -> None:
        with held(store) as claim:
            met.wait()  # both have written their lease
            lost.append(claim.lost())
            met.wait()  # both have looked before one of them leaves

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lost) == [False, True]


def test_a_folder_without_the_lease_is_another_one_than_the_holders(store: Store, tmp_path: Path) -> None:
    with held(store) as claim:
        here = claim._replace(store=Store(str(tmp_path / "local")))
        with pytest.raises(StorageError, match=r"local/lease\.json: not found by host \S+: a folder must be the same one"):
            here.check()
        assert not here.lost()
        store.delete(LEASE)
        while not store.exists(LEASE):  # the next renewal writes it again
            time.sleep(0.02)
        claim.check()


def test_on_an_s3_server(endpoint: str, credentials: None) -> None:
    store = Store("s3://leases/runs/a", endpoint)
    Store("s3://leases", endpoint)._fs().mkdir("leases")
    with held(store) as claim:
        claim.check()
        assert holder_of(store)
    assert store.list() == []
