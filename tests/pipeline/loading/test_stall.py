"""The stall monitor is silent while batches come, logs the reason when none comes, and leaves no thread behind."""

import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.config import Config
from pipeline.config.load import override, parse
from pipeline.data.index import write_index
from pipeline.data.manifest import Manifest, Split
from pipeline.data.shards import Row, write_shard
from pipeline.loading import stall
from pipeline.loading.stall import StallMonitor, stall_reason
from pipeline.storage.store import open_store


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert {t for t in set(threading.enumerate()) - before if t.is_alive() and "_watch" in t.name} == set()


def never() -> str:
    raise AssertionError("no batch was late")


def batches(number: int, seconds: float) -> Iterator[int]:
    for batch in range(number):
        time.sleep(seconds)
        yield batch


def test_batches_pass_in_order_without_a_word_while_each_comes_in_time(caplog: pytest.LogCaptureFixture) -> None:
    assert list(StallMonitor(1.0, never).watched(batches(12, 0.1))) == list(range(12))  # more than 1 s in total
    assert caplog.messages == []


def test_the_time_that_the_caller_spends_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    for _ in StallMonitor(0.4, never).watched(batches(2, 0)):
        time.sleep(0.6)
    assert caplog.messages == []


def test_a_batch_that_does_not_come_is_logged_again_and_again_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    logged: list[float] = []
    come = threading.Event()

    def reason() -> str:
        logged.append(time.monotonic())
        if len(logged) == 3:
            come.set()
        return f"reason {len(logged)}"

    def stalled() -> Iterator[int]:
        yield 0
        come.wait()
        yield 1

    started = time.monotonic()
    assert list(StallMonitor(0.3, reason).watched(stalled())) == [0, 1]
    assert caplog.messages[:3] == [f"no batch for {0.3 * n:.0f} s: reason {n}" for n in (1, 2, 3)]
    assert all(later - earlier >= 0.3 for earlier, later in zip([started, *logged], logged, strict=False))


def test_a_batch_that_comes_is_not_held_up_by_the_search_for_the_reason() -> None:
    searching, come, taken = threading.Event(), threading.Event(), threading.Event()

    def reason() -> str:
        searching.set()
        assert taken.wait(30)  # the batch is passed on before the reason is found
        return "slow"

    def stalled() -> Iterator[int]:
        come.set()
        assert searching.wait(30)
        yield 0

    for batch in StallMonitor(0.1, reason).watched(stalled()):
        assert batch == 0
        taken.set()


def test_a_reason_that_cannot_be_found_is_logged_and_the_watch_continues(caplog: pytest.LogCaptureFixture) -> None:
    come, tries = threading.Event(), []

    def broken() -> str:
        tries.append(1)
        if len(tries) == 2:
            come.set()
        raise ConnectionError("no cluster")

    def stalled() -> Iterator[int]:
        come.wait()
        yield 0

    assert list(StallMonitor(0.1, broken).watched(stalled())) == [0]
    assert caplog.messages[1] == "no batch for 0 s: the reason cannot be found: ConnectionError: no cluster"


@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_no_thread_is_left_when_the_caller_stops(num_taken: int) -> None:
    before = set(threading.enumerate())
    watched = StallMonitor(60.0, never).watched(iter(range(3)))
    for batch in range(num_taken):
        assert next(watched) == batch
        assert len(set(threading.enumerate()) - before) == 1
    watched.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before


def test_no_thread_is_left_when_the_batches_end_or_fail() -> None:
    def failing() -> Iterator[int]:
        yield 0
        raise RuntimeError("data order broken")

    before = set(threading.enumerate())
    assert list(StallMonitor(60.0, never).watched(iter(range(3)))) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="data order broken"):
        list(StallMonitor(60.0, never).watched(failing()))
    assert set(threading.enumerate()) == before


def prepared(folder: Path) -> tuple[Config, Manifest]:
    """Configuration and manifest of a data set of one sample."""
    data = {"name": "one", "layout": "generated", "crop_size": 33}
    config = parse({"name": "t", "storage": {"path": str(folder)}, "model": {"recurrence": 2}, "data": data})
    store = open_store(config.data_url, config.storage)
    write_index(store, "index", write_shard(store, "a.parquet", [Row("a", b"image", b"label", 1, 1)]), [])
    split = Split(1, "index", "", 10, (), (), 0, (1, 1), (1, 1))
    return config, Manifest("one", "generated", (), (), {}, {"train": split}, True, "")


@pytest.mark.slow
def test_the_reason_reports_that_the_storage_answers_and_whether_cpus_are_free(tmp_path: Path, local_ray: None) -> None:
    config, manifest = prepared(tmp_path)
    modest = override(config, {"data.cpus_per_task": 0.01})  # earlier tests may still hold some of the cluster's CPUs
    storage, cpus = stall_reason(modest, manifest).split("; ", 1)
    assert storage == "the storage answers in 0.0 s"
    assert re.match(r"[\d.]+ of 2 CPUs are free: Ray Data is not held up by CPUs", cpus)
    short = stall_reason(override(config, {"data.cpus_per_task": 4}), manifest)
    assert re.search(r"; [\d.]+ of 2 CPUs are free: either Ray Data's tasks run but are slower", short)
    assert "lower train.cpus_per_worker, data.cpus_per_task" in short


@pytest.mark.slow
def test_the_reason_reports_within_seconds_that_a_store_does_not_answer(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(stall, "PROBE_S", 0.2)
    config, manifest = prepared(tmp_path)
    gone = override(config, {"storage.path": "s3://bucket/p", "storage.endpoint": "http://127.0.0.1:9"})
    started = time.monotonic()
    assert (
        "the storage does not answer: s3://bucket/p/data/one/index/00000000.arrow at http://127.0.0.1:9: cannot be reached"
        in (stall_reason(gone, manifest))
    )
    assert time.monotonic() - started < 20  # storage.patience_s is 120


@pytest.mark.slow
def test_the_reason_names_a_lost_shard(tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture) -> None:
    config, manifest = prepared(tmp_path)
    open_store(config.data_url, config.storage).delete("a.parquet")
    with caplog.at_level(logging.WARNING):
        assert f"the storage answers, but {config.data_url}/a.parquet: no such object" in stall_reason(config, manifest)
