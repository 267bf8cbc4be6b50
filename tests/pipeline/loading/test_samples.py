"""Samples by position, packed and in place, from a folder and from S3: few requests, every byte checked, every fault named."""

import pickle
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.base import Storage
from pipeline.config.load import parse
from pipeline.data.index import Entry, Index, digest, page_key, write_index
from pipeline.data.manifest import Manifest, Split
from pipeline.data.shards import Row, write_shard
from pipeline.errors import SampleError, ShardError
from pipeline.loading.samples import READ_AHEAD, Samples, open_samples
from pipeline.storage.store import Store, open_store

NUM_IMAGES = 20
ROWS = [Row(f"s-{i}", secrets.token_bytes(3000 + i), secrets.token_bytes(90 + i), 360 + i, 480) for i in range(NUM_IMAGES)]
SHARDS = ("train-0.parquet", "train-1.parquet")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, credentials: None, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path), Storage(path="unused"))
    bucket = f"bucket-{secrets.token_hex(4)}"
    made = open_store(f"s3://{bucket}/data/toy", Storage(path="unused", endpoint=request.getfixturevalue("endpoint")))
    made._fs().mkdir(bucket)
    return made


def packed(store: Store) -> Samples:
    """Ten samples in each of two shards."""
    entries = [e for n, key in enumerate(SHARDS) for e in write_shard(store, key, ROWS[10 * n : 10 * n + 10])]
    write_index(store, "index-packed", entries, [])
    return Samples(Index(store, "index-packed", NUM_IMAGES), store)


def in_place(store: Store) -> Samples:
    """One object for each image and one for each label, in another folder than the index."""
    objects, entries = store.join("source"), []
    for row in ROWS:
        image, label = f"train/{row.sample_id}.png", f"trainannot/{row.sample_id}.png"
        objects.write(image, row.image)
        objects.write(label, row.label)
        entries.append(Entry(row.sample_id, image, 0, len(row.image), digest(row.image), label, 0, len(row.label),
                             digest(row.label), row.height, row.width))  # fmt: skip
    write_index(store, "index-in-place", entries, [])
    return Samples(Index(store, "index-in-place", NUM_IMAGES), objects)


@pytest.fixture(params=[packed, in_place])
def samples(request: pytest.FixtureRequest, store: Store) -> Samples:
    made: Samples = request.param(store)
    return made


Ranges = Sequence[tuple[str, int, int | None]]


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int | None]]:
    """The ranges requested from any store."""
    all_ranges: list[tuple[str, int, int | None]] = []
    fetch = Store.read_ranges

    def counting(self: Store, ranges: Ranges) -> list[bytes]:
        all_ranges.extend(ranges)
        return fetch(self, ranges)

    monkeypatch.setattr(Store, "read_ranges", counting)
    return all_ranges


def flip(store: Store, key: str, place: int) -> None:
    data = bytearray(store.read(key))
    data[place] ^= 1
    store.write(key, bytes(data))


def test_rows_come_back_in_the_requested_order(samples: Samples) -> None:
    assert samples.read(range(NUM_IMAGES)) == ROWS
    assert samples.try_read([19, 0, 4, 4, 3]) == [ROWS[19], ROWS[0], ROWS[4], ROWS[4], ROWS[3]]
    assert samples.read([]) == []
    assert pickle.loads(pickle.dumps(samples)).read([7]) == [ROWS[7]]


def test_a_position_outside_is_refused(samples: Samples) -> None:
    for position in (-1, NUM_IMAGES):
        with pytest.raises(IndexError, match="the split has 20"):
            samples.try_read([0, position])


def test_a_packed_sample_costs_one_request_of_its_own_size(store: Store, requested: list[tuple[str, int, int]]) -> None:
    samples = packed(store)
    samples.read([0])
    del requested[:]
    assert samples.read([3, 18]) == [ROWS[3], ROWS[18]]
    assert [key for key, _, _ in requested] == list(SHARDS)
    assert all(3000 < end - start < 3400 for _, start, end in requested)


def test_a_sample_in_place_costs_two_requests_for_whole_objects(store: Store, requested: list[tuple[str, int, int]]) -> None:
    samples = in_place(store)
    samples.read([0])
    del requested[:]
    assert samples.read([3]) == [ROWS[3]]
    assert requested == [("train/s-3.png", 0, None), ("trainannot/s-3.png", 0, None)]


@pytest.mark.parametrize("part", ["image", "label"])
def test_a_corrupt_byte_is_read_again_once_and_then_named(
    samples: Samples, part: str, requested: list[tuple[str, int, int | None]]
) -> None:
    entry = samples.index.entries([2])[0]
    key, start = (entry.image, entry.image_start) if part == "image" else (entry.label, entry.label_start)
    flip(samples.objects, key, start + 50)
    del requested[:]
    before, fault, after = samples.try_read([1, 2, 3])
    assert (before, after) == (ROWS[1], ROWS[3])
    assert isinstance(fault, SampleError)
    expected = re.escape(f"{samples.objects.url(key)}: corrupt: its bytes are not those that jobs.prepare saw (sample s-2): ")
    fix = "delete" if entry.image == entry.label else "fix"
    assert re.match(f"{expected}{fix} it and run python -m jobs.prepare CONFIG again; data.max_skipped lets", str(fault))
    requests = 1 if entry.image == entry.label else 2
    assert len(requested) == 4 * requests
    with pytest.raises(SampleError, match=r"sample s-2"):
        samples.read([1, 2, 3])


def test_what_was_damaged_on_the_way_is_whole_the_second_time(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, damaged = Store.read_ranges, []

    def flaky(self: Store, ranges: Ranges) -> list[bytes]:
        parts = fetch(self, ranges)
        if not damaged and ranges[0][0] == target:
            damaged.append(ranges)
            parts = [part[:7] + b"!" + part[8:] for part in parts]
        return parts

    target = samples.index.entries([4])[0].image  # the index is cached now: only samples are damaged
    monkeypatch.setattr(Store, "read_ranges", flaky)
    assert samples.read([4, 5]) == [ROWS[4], ROWS[5]]
    assert len(damaged) == 1


def lose(store: Store, key: str) -> None:
    store.delete(key)


def cut(store: Store, key: str) -> None:
    store.write(key, store.read(key)[:-1])


def empty(store: Store, key: str) -> None:
    store.write(key, b"")


@pytest.mark.parametrize("key", ["train/s-9.png", "trainannot/s-9.png"])
@pytest.mark.parametrize(("damage", "fault"), [(lose, "no such object"), (cut, "corrupt"), (empty, "corrupt")])
def test_one_bad_object_in_a_batch_is_named_and_the_others_come(
    store: Store, key: str, damage: Callable[[Store, str], None], fault: str
) -> None:
    samples = in_place(store)
    damage(samples.objects, key)
    rows = samples.try_read([8, 9, 10, 9])
    assert [rows[0], rows[2]] == [ROWS[8], ROWS[10]]
    for row in (rows[1], rows[3]):
        assert isinstance(row, SampleError)
        assert str(row).startswith(f"{samples.objects.url(key)}: {fault}")
        assert "(sample s-9)" in str(row)
    with pytest.raises(SampleError, match=f"{key}: {fault}"):
        samples.read([8, 9, 10])
    found = [isinstance(row, SampleError) for row in samples.ahead(range(NUM_IMAGES))]
    assert found == [position == 9 for position in range(NUM_IMAGES)]


@pytest.mark.parametrize("damage", [lose, empty])
def test_a_lost_or_empty_shard_spoils_its_own_samples_only(store: Store, damage: Callable[[Store, str], None]) -> None:
    samples = packed(store)
    damage(store, SHARDS[1])
    rows = samples.try_read([0, 10, 9, 19])
    assert [rows[0], rows[2]] == [ROWS[0], ROWS[9]]
    for row, sample_id in ((rows[1], "s-10"), (rows[3], "s-19")):
        assert isinstance(row, SampleError)
        assert str(row).startswith(store.url(SHARDS[1]))
        assert f"(sample {sample_id})" in str(row)


def test_a_lost_index_page_is_no_fault_of_a_sample(store: Store) -> None:
    samples = packed(store)
    store.delete(page_key("index-packed", 0))
    with pytest.raises(ShardError, match=r"index-packed/00000000.arrow: index page missing") as caught:
        samples.try_read([0])
    assert not isinstance(caught.value, SampleError)


@pytest.mark.parametrize("num_images", [0, 1, READ_AHEAD, READ_AHEAD + 1, NUM_IMAGES])
def test_reading_ahead_keeps_the_order(samples: Samples, num_images: int) -> None:
    positions = np.random.default_rng(0).permutation(NUM_IMAGES)[:num_images].tolist()
    assert list(samples.ahead(positions)) == [ROWS[p] for p in positions]


def test_reading_ahead_is_one_request_ahead_and_no_more(store: Store, requested: list[tuple[str, int, int]]) -> None:
    samples = packed(store)
    samples.read([0])
    del requested[:]
    rows = samples.ahead(list(range(NUM_IMAGES)))
    assert next(rows) == ROWS[0]
    rows.close()  # type: ignore[attr-defined]
    assert len(requested) == 2 * READ_AHEAD


@pytest.mark.parametrize("num_taken", [0, 1, READ_AHEAD + 1, NUM_IMAGES])
def test_reading_ahead_leaves_no_thread_when_the_caller_stops(tmp_path: Path, num_taken: int) -> None:
    samples = packed(open_store(str(tmp_path), Storage(path="unused")))
    before = set(threading.enumerate())
    rows = samples.ahead(list(range(NUM_IMAGES)))
    assert [next(rows) for _ in range(num_taken)] == ROWS[:num_taken]
    rows.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before


def test_reading_ahead_leaves_no_thread_when_the_index_is_gone(tmp_path: Path) -> None:
    samples = packed(store := open_store(str(tmp_path), Storage(path="unused")))
    store.delete("index-packed")
    before = set(threading.enumerate())
    with pytest.raises(ShardError, match="index page missing"):
        list(samples.ahead(list(range(NUM_IMAGES))))
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_split_is_opened_in_its_shards_or_where_the_originals_lie(tmp_path: Path, is_packed: bool) -> None:
    data = {"name": "toy", "layout": "camvid", "source": str(tmp_path / "store/data/toy/source"), "crop_size": 33}
    config = parse({"name": "t", "storage": {"path": str(tmp_path / "store")}, "model": {"recurrence": 2}, "data": data})
    made = (packed if is_packed else in_place)(open_store(config.data_url, config.storage))
    split = Split(NUM_IMAGES, made.index.folder, "", 0, (), (), 0, (0, 0), (0, 0))
    manifest = Manifest("toy", "camvid", (), (), {}, {"train": split}, is_packed, "")
    assert open_samples(config, manifest, "train") == made
    assert open_samples(config, manifest, "train").read([5]) == [ROWS[5]]
