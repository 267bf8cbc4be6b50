"""A faulty proxy before a real S3 server (moto): which requests are retried, what is logged, and the errors at the end."""

import functools
import random
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.base import Bucket, Storage
from pipeline.errors import StorageError
from pipeline.storage.probe import check_readable
from pipeline.storage.retry import Failed
from pipeline.storage.s3 import S3FileSystem
from pipeline.storage.s3_errors import codes
from pipeline.storage.store import Store, open_store
from tests.support.faulty_store import FAULTS, FaultyStore, refused

NUM_OBJECTS, OBJECT_BYTES, NUM_FETCHES = 40, 20_000, 208
LINE = re.compile(r"s3://[^:]+/(shard-\d+|new): (.+), try \d+ in \d\.\d s")


pytestmark = pytest.mark.usefixtures("credentials")


@functools.cache
def filled(endpoint: str) -> Store:
    """A bucket of 40 objects."""
    store = Store(f"s3://bucket-{secrets.token_hex(4)}/data", endpoint)
    store._fs().mkdir(store.root.split("/")[2])
    for number in range(NUM_OBJECTS):
        store.write(f"shard-{number}", random.Random(number).randbytes(OBJECT_BYTES))
    return store


@pytest.fixture
def healthy(endpoint: str) -> Store:
    """The bucket, accessed without the proxy; every test must leave it unchanged."""
    return filled(endpoint)


def behind(proxy: FaultyStore, healthy: Store, *, patience_s: float = 60, read_timeout_s: float = 5) -> Store:
    return Store(healthy.root, proxy.endpoint, patience_s, read_timeout_s)


def batches(num_fetches: int) -> list[list[tuple[str, int, int]]]:
    draw = random.Random(0)
    starts = [draw.randrange(OBJECT_BYTES - 3000) for _ in range(num_fetches)]
    ranges = [(f"shard-{draw.randrange(NUM_OBJECTS)}", start, start + draw.randrange(1, 3000)) for start in starts]
    return [ranges[i : i + 16] for i in range(0, num_fetches, 16)]


def logged_faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.name == "pipeline.storage.store"]
    assert all(LINE.fullmatch(line) for line in lines), lines
    return lines


def served(fault: str, healthy: Store) -> FaultyStore:
    """A proxy that answers every request with one fault."""
    return FaultyStore(healthy.endpoint or "", aimed={"": fault})


@pytest.mark.slow
def test_faults_of_every_kind_change_no_byte_and_are_all_in_the_log(healthy: Store, caplog: pytest.LogCaptureFixture) -> None:
    requested = batches(NUM_FETCHES)
    objects = {f"shard-{number}": random.Random(number).randbytes(OBJECT_BYTES) for number in range(NUM_OBJECTS)}
    expected = [[objects[key][start:end] for key, start, end in batch] for batch in requested]
    assert [healthy.read_ranges(batch) for batch in requested[:10]] == expected[:10]
    weights = {"slow_down": 30.0, "reset": 30.0, "reset_body": 30.0, "truncate": 30.0, "stall": 12.0, "stall_body": 12.0}
    with FaultyStore(healthy.endpoint or "", seed=0, probability=0.2, weights=weights) as proxy:
        store = behind(proxy, healthy, read_timeout_s=1)
        with ThreadPoolExecutor(4) as threads:
            fetched = list(threads.map(store.read_ranges, requested))
    assert fetched == expected
    assert set(proxy.injected) == set(FAULTS)
    assert proxy.injected.total() >= 40
    logged = logged_faults(caplog)
    assert len(logged) == proxy.requests - NUM_FETCHES, "each request that failed is in the log, and was sent again"
    late = len(logged) - proxy.injected.total()  # on a busy machine an answer may really take more than the second
    assert 0 <= late <= sum("Read timeout" in line for line in logged) - proxy.injected["stall"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "stall" not in fault])
def test_every_verb_outlasts_a_fault_and_logs_it(fault: str, healthy: Store, caplog: pytest.LogCaptureFixture) -> None:
    calls = {
        "read": lambda store: store.read("shard-0"),
        "read_ranges": lambda store: store.read_ranges([("shard-1", 5, 10)]),
        "write": lambda store: store.write("new", b"value"),
        "size": lambda store: store.size("new"),
        "exists": lambda store: store.exists("new"),
        "listing": lambda store: store.listing("new"),
        "delete": lambda store: store.delete("new"),
    }
    results = {}
    with FaultyStore(healthy.endpoint or "") as proxy:
        store = behind(proxy, healthy)
        for number, (name, call) in enumerate(calls.items(), 1):
            caplog.clear()
            proxy.chosen = {proxy.requests: fault}  # the next request
            results[name] = call(store)
            assert proxy.injected == {fault: number}, name
            assert len(logged_faults(caplog)) == 1, name
    assert results["read"] == random.Random(0).randbytes(OBJECT_BYTES)
    assert results["read_ranges"] == [random.Random(1).randbytes(OBJECT_BYTES)[5:10]]
    assert (results["size"], results["exists"], [o.key for o in results["listing"]]) == (5, True, ["new"])
    assert not healthy.exists("new")


def test_only_the_ranges_that_failed_are_fetched_again(healthy: Store) -> None:
    with FaultyStore(healthy.endpoint or "", chosen={1: "slow_down", 3: "truncate"}) as proxy:
        parts = behind(proxy, healthy).read_ranges([(f"shard-{number}", 0, 100) for number in range(16)])
    assert parts == [healthy.read(f"shard-{number}")[:100] for number in range(16)]
    assert proxy.requests == 16 + 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("slow_down", r"does not recover \(503 SlowDown; tried \d+ times in \d\.\d s\): .*raise storage.patience_s"),
        ("reset", r"cannot be reached \(.*; tried \d+ times in \d\.\d s\): is the store up"),
        ("stall", r"cannot be reached \(.*[Tt]imeout.*; tried \d+ times in \d\.\d s\): is the store up"),
    ],
)
def test_a_fault_that_stays_is_an_error_with_bucket_and_key_when_the_patience_is_spent(
    fault: str, words: str, healthy: Store
) -> None:
    with FaultyStore(healthy.endpoint or "", chosen=dict.fromkeys(range(1, 1000), fault)) as proxy:
        store = behind(proxy, healthy, patience_s=1, read_timeout_s=0.25)
        assert store.exists("shard-3")  # connects before the measurement: making a client takes a second on a busy machine
        start = time.monotonic()
        with pytest.raises(StorageError, match=rf"^{store.root}/shard-3 at {proxy.endpoint}: {words}"):
            store.read_ranges([("shard-3", 0, 100)])
        assert 0.9 < time.monotonic() - start < 6


def test_a_missing_object_is_reported_at_once_by_its_address(healthy: Store) -> None:
    with FaultyStore(healthy.endpoint or "") as proxy:
        store = behind(proxy, healthy)
        for call in (lambda: store.read("gone"), lambda: store.read_ranges([("shard-0", 0, 9), ("gone", 0, 9)])):
            with pytest.raises(FileNotFoundError, match=f"'{store.url('gone')}'"):
                call()
        assert proxy.requests == 2 + 2  # `read` requests the size first, then checks for a folder of that name


def test_refused_credentials_are_reported_at_once(healthy: Store, caplog: pytest.LogCaptureFixture) -> None:
    with served("forbid", healthy) as proxy:
        store = behind(proxy, healthy)
        with pytest.raises(StorageError, match=rf"{store.url('shard-0')} at .*access refused \(403 SignatureDoesNotMatch\)"):
            store.read_ranges([("shard-0", 0, 9)])
        assert proxy.requests == 1
    assert logged_faults(caplog) == []


def test_a_missing_bucket_is_reported_at_once(endpoint: str) -> None:
    with pytest.raises(StorageError, match=r"s3://none/p/key at .*: bucket `none` does not exist: create it"):
        Store("s3://none/p", endpoint).read_ranges([("key", 0, 9)])


def test_a_range_past_the_end_gives_what_the_object_holds(healthy: Store, caplog: pytest.LogCaptureFixture) -> None:
    data = healthy.read("shard-0")
    ranges = [("shard-0", OBJECT_BYTES - 5, OBJECT_BYTES + 5), ("shard-0", OBJECT_BYTES + 5, OBJECT_BYTES + 9)]
    assert healthy.read_ranges(ranges) == [data[-5:], b""]
    assert logged_faults(caplog) == []


def test_a_store_that_is_only_read_is_checked_by_a_short_listing(healthy: Store) -> None:
    with FaultyStore(healthy.endpoint or "") as proxy:
        check_readable(behind(proxy, healthy))
        assert proxy.requests == 1
    with served("forbid", healthy) as proxy:
        message = rf"{healthy.root} at .*: access refused .* they may list and read in bucket"
        with pytest.raises(StorageError, match=message):
            check_readable(behind(proxy, healthy))


def test_a_reply_without_a_body_is_asked_again_for_its_cause(healthy: Store) -> None:
    """A HEAD reply has no body: `400 Bad Request` could be an expired token, a wrong region or a wrong clock."""
    fs = healthy._fs()
    bucket, key, _ = fs.split_path(healthy._path("archived"))
    fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"x", StorageClass="GLACIER")
    with pytest.raises(StorageError, match=r"/archived at .*: archived: restore it first .*403 InvalidObjectState"):
        healthy.read("archived")
    head = Failed(0, 1, 0.0, final=True)
    head.__cause__ = refused("403", 403, "Forbidden")
    assert codes(healthy._named(head, "archived")) == {"InvalidObjectState"}
    healthy.delete("archived")


def make_public(store: Store, key: str) -> None:
    bucket, path, _ = store._fs().split_path(store._path(key))
    store._fs().call_s3("put_object_acl", Bucket=bucket, Key=path, ACL="public-read")


def test_a_public_bucket_is_read_without_credentials(healthy: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_public(healthy, "shard-0")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    name = healthy.root.split("/")[2]
    access = Storage(path="unused", endpoint=healthy.endpoint)
    with pytest.raises(
        StorageError, match=rf"no credentials: .*; if the bucket is public, set storage.buckets.{name}.anonymous=true"
    ):
        check_readable(open_store(healthy.root, access))
    access = access.model_copy(update={"buckets": {name: Bucket(anonymous=True)}})
    public = open_store(healthy.root, access)
    check_readable(public)
    assert public.read("shard-0") == random.Random(0).randbytes(OBJECT_BYTES)
    access = access.model_copy(update={"buckets": {name: Bucket(profile="none")}})
    with pytest.raises(StorageError, match=r"no profile 'none' in ~/.aws/config"):
        check_readable(open_store(healthy.root, access))


def test_each_way_of_access_reaches_the_requests(healthy: Store) -> None:
    make_public(healthy, "shard-0")
    with FaultyStore(healthy.endpoint or "") as proxy:
        for bucket in (Bucket(), Bucket(requester_pays=True), Bucket(anonymous=True)):
            store = replace(behind(proxy, healthy), bucket=bucket)
            store.listing()
            store.read_ranges([("shard-0", 0, 1)])
    seen = [(fields.get("x-amz-request-payer"), "authorization" in fields) for fields in proxy.fields]
    assert seen == [(None, True)] * 2 + [("requester", True)] * 2 + [(None, False)] * 2
    virtual = replace(healthy, endpoint="http://store.example", bucket=Bucket(addressing="virtual"))
    bucket, key, _ = virtual._fs().split_path(virtual._path("a"))
    assert virtual._fs().url(virtual._path("a")).startswith(f"http://{bucket}.store.example/{key}?")
