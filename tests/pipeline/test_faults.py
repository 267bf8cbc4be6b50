"""A store that misbehaves, behind a real S3 server (moto): what is tried again, what the log says, and the errors at the end."""

import logging
import random
import re
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from moto.server import ThreadedMotoServer

from pipeline import storage
from pipeline.settings import Storage
from pipeline.storage import StorageError, Store, check, open_store
from tests.faulty_store import FAULTS, FaultyStore

NUM_OBJECTS, OBJECT_BYTES = 40, 20_000
LINE = re.compile(r"s3://[^:]+/(shard-\d+|new): (.+), try \d+ in \d\.\d s")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    storage._S3.clear_instance_cache()


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def healthy(upstream: str) -> Store:
    """A bucket of 40 objects, seen without the proxy."""
    store = Store(f"s3://bucket-{secrets.token_hex(4)}/data", upstream)
    store._fs().mkdir(store.root.split("/")[2])
    for number in range(NUM_OBJECTS):
        store.write(f"shard-{number}", random.Random(number).randbytes(OBJECT_BYTES))
    return store


def behind(proxy: FaultyStore, healthy: Store, *, patience_s: float = 60, read_timeout_s: float = 5) -> Store:
    return Store(healthy.root, proxy.endpoint, patience_s, read_timeout_s)


def batches(num_fetches: int) -> list[list[tuple[str, int, int]]]:
    draw = random.Random(0)
    starts = [draw.randrange(OBJECT_BYTES - 3000) for _ in range(num_fetches)]
    ranges = [(f"shard-{draw.randrange(NUM_OBJECTS)}", start, start + draw.randrange(1, 3000)) for start in starts]
    return [ranges[i : i + 16] for i in range(0, num_fetches, 16)]


def faults_told(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.name == "pipeline.storage"]
    assert all(LINE.fullmatch(line) for line in lines), lines
    return lines


@pytest.mark.slow
def test_200_faults_in_2000_fetches_change_no_batch_and_are_all_in_the_log(
    healthy: Store, caplog: pytest.LogCaptureFixture
) -> None:
    asked = batches(2000)
    expected = [healthy.read_ranges(batch) for batch in asked]
    weights = {"slow_down": 30.0, "reset": 30.0, "reset_body": 30.0, "truncate": 30.0, "stall": 4.0, "stall_body": 4.0}
    with FaultyStore(healthy.endpoint or "", seed=0, probability=0.11, weights=weights) as proxy:
        store = behind(proxy, healthy, read_timeout_s=2)
        with ThreadPoolExecutor(4) as threads:
            fetched = list(threads.map(store.read_ranges, asked))
    print(proxy.requests, proxy.injected)
    assert fetched == expected
    assert set(proxy.injected) == set(FAULTS)
    assert proxy.injected.total() >= 200
    assert len(faults_told(caplog)) == proxy.injected.total() == proxy.requests - 2000


def test_x(healthy: Store) -> None:
    asked = batches(2000)
    t = time.time()
    [healthy.read_ranges(batch) for batch in asked]
    print("direct", time.time() - t)
