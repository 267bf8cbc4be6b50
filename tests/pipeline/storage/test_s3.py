"""Requests whose bytes trickle, on a real S3 server (moto) behind a proxy that slows each connection."""

import secrets
import time

import pytest

from pipeline.errors import StorageError
from pipeline.storage import s3
from pipeline.storage.probe import check
from pipeline.storage.store import Store
from tests.support.buckets import make_bucket
from tests.support.faulty_store import FaultyStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("credentials")]  # half a minute
DATA = secrets.token_bytes(1_000_000)


def slowed(proxy: FaultyStore, healthy: Store) -> Store:
    return Store(healthy.root, proxy.endpoint, patience_s=4)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor is 11 KiB/s."""
    monkeypatch.setattr(s3, "PIECE_BYTES", 2**14)
    monkeypatch.setattr(s3, "PIECE_S", 1.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("verb", ["write", "read", "read_ranges", "listing", "check"])
def test_a_request_whose_bytes_trickle_ends_with_the_rate_and_the_way_out(verb: str, endpoint: str) -> None:
    healthy = make_bucket(endpoint)
    healthy.write("a", DATA)
    for number in range(30 if verb == "listing" else 0):
        healthy.write(f"{number}-{'x' * 500}", b"")
    with FaultyStore(endpoint) as proxy:
        store = slowed(proxy, healthy)
        assert store.size("a") == len(DATA)  # connects before the measurement
        proxy.rate = 5_000
        start = time.monotonic()
        words = (
            rf"^{healthy.root}(/\w+)? at {proxy.endpoint}: too slow \(less than 16 KiB in 1.5 s; tried \d times in [\d.]+ s\): "
            r"look for what fills the network"
        )
        with pytest.raises(StorageError, match=words):
            {
                "write": lambda: store.write("b", DATA),
                "read": lambda: store.read("a"),
                "read_ranges": lambda: store.read_ranges([("a", 0, 900_000), ("a", 5, 9)]),
                "listing": store.listing,
                "check": lambda: check(store),
            }[verb]()
    assert time.monotonic() - start < 20
    assert not healthy.exists("b")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("verb", ["size", "write"])
def test_a_reply_whose_head_trickles_ends_with_the_rate(verb: str, endpoint: str) -> None:
    healthy = make_bucket(endpoint)
    healthy.write("a", b"1")
    with FaultyStore(endpoint) as proxy:
        store = slowed(proxy, healthy)
        assert store.size("a") == 1
        proxy.rate = 50  # bytes per second, of some hundred
        start = time.monotonic()
        with pytest.raises(StorageError, match=r": too slow \(less than 16 KiB in 1.5 s; tried \d times"):
            {"size": lambda: store.size("a"), "write": lambda: store.write("a", b"12")}[verb]()
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("quick")
def test_a_slow_link_above_the_floor_carries_every_byte(endpoint: str) -> None:
    healthy = make_bucket(endpoint)
    with FaultyStore(endpoint, rate=400_000) as proxy:
        store = slowed(proxy, healthy)
        store.write("a", DATA)
        assert store.read("a") == DATA == healthy.read("a")
