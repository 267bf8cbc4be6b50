"""Shards and manifest: bytes come back untouched, by index, alone; what is damaged is named."""

import json
import pickle
import secrets
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from pipeline import storage
from pipeline.settings import Storage
from pipeline.shards import MANIFEST, Manifest, Row, ShardError, ShardReader, Split, read_manifest, write_manifest, write_shard
from pipeline.storage import Store, open_store

ROWS = [Row(f"sample-{i}", secrets.token_bytes(5000 + i), secrets.token_bytes(90 + i), 360 + i, 480) for i in range(10)]


def pack(store: Store, *groups: list[Row]) -> Manifest:
    shards = tuple(write_shard(store, f"abc/train-{n:06d}.parquet", rows) for n, rows in enumerate(groups))
    split = Split(sum(map(len, groups)), shards, (3, 4), 5, ((360, 480, 10),))
    empty = Split(0, (), (0, 0), 0, ())
    splits = {"train": split, "val": empty}
    return write_manifest(store, Manifest("toy", "camvid", ("a", "b"), ((1, 2, 3), (4, 5, 6)), {0: 0, 4: 1, 9: 255}, splits, "s"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), Storage(path="unused"))


def test_rows_come_back_by_index_in_the_order_asked(store: Store) -> None:
    reader = ShardReader(store, pack(store, ROWS[:4], ROWS[4:5], ROWS[5:]), "train")
    assert len(reader) == 10
    assert reader.read(range(10)) == ROWS
    assert reader.read([9, 0, 4, 4, 3]) == [ROWS[9], ROWS[0], ROWS[4], ROWS[4], ROWS[3]]
    assert reader.read(np.array([5])) == [ROWS[5]]
    assert reader.read([]) == []
    assert pickle.loads(pickle.dumps(reader)).read([7]) == [ROWS[7]]


def test_an_index_outside_is_refused(store: Store) -> None:
    manifest = pack(store, ROWS)
    for split, index in (("train", 10), ("train", -1), ("val", 0)):
        with pytest.raises(IndexError, match="the split has"):
            ShardReader(store, manifest, split).read([index])


def test_one_sample_costs_one_request_of_its_own_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ShardReader(store, pack(store, ROWS), "train")
    reader.read([0])
    asked: list[int] = []
    fetch = Store.read_ranges

    def counting(self: Store, ranges: list[tuple[str, int, int]]) -> list[bytes]:
        asked.extend(end - start for _, start, end in ranges)
        return fetch(self, ranges)

    monkeypatch.setattr(Store, "read_ranges", counting)
    assert reader.read([3, 8]) == [ROWS[3], ROWS[8]]
    assert len(asked) == 2
    assert all(5000 < size < 6000 for size in asked)


def test_a_footer_larger_than_the_first_read(store: Store) -> None:
    rows = [Row(f"{i}", b"i", b"l", 1, 1) for i in range(300)]
    manifest = pack(store, rows)
    assert ShardReader(store, manifest, "train").read([299, 0]) == [rows[299], rows[0]]


def test_the_manifest_comes_back_equal_and_sealed(store: Store) -> None:
    manifest = pack(store, ROWS)
    assert read_manifest(store) == manifest
    assert len(manifest.fingerprint) == 64
    assert (manifest.num_images("train"), manifest.num_images("val")) == (10, 0)
    table = manifest.label_lookup()
    assert (table.dtype, table[[0, 4, 9, 77]].tolist()) == (np.uint8, [0, 1, 255, 255])


def test_the_fingerprint_follows_every_byte(store: Store) -> None:
    first, same = pack(store, ROWS), pack(store, ROWS)
    changed = pack(store, [ROWS[0]._replace(label=b"other"), *ROWS[1:]])
    assert first.fingerprint == same.fingerprint != changed.fingerprint


def test_no_manifest_says_what_to_run(store: Store) -> None:
    with pytest.raises(ShardError, match=r"manifest.json: no such data set: run python -m jobs.prepare CONFIG first"):
        read_manifest(store)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 2}, "version 2, this code reads 1"),
        ({"name": "edited"}, "fingerprint does not match"),
        ({"splits": {"train": {}}}, "damaged"),
        ({"unknown": 1}, "damaged"),
    ],
)
def test_a_changed_manifest_is_refused(store: Store, change: dict[str, object], fault: str) -> None:
    pack(store, ROWS)
    store.write(MANIFEST, json.dumps({**json.loads(store.read(MANIFEST)), **change}).encode())
    with pytest.raises(ShardError, match=fault):
        read_manifest(store)


def test_torn_json_is_refused(store: Store) -> None:
    store.write(MANIFEST, b'{"version": 1, ')
    with pytest.raises(ShardError, match="not valid JSON"):
        read_manifest(store)


def test_a_flipped_bit_in_a_shard_is_found_at_the_read(store: Store) -> None:
    manifest = pack(store, ROWS)
    shard = manifest.splits["train"].shards[0]
    data = bytearray(store.read(shard.key))
    place = data.index(ROWS[2].image) + 100
    data[place] ^= 1
    store.write(shard.key, bytes(data))
    reader = ShardReader(store, manifest, "train")
    assert reader.read([1]) == [ROWS[1]]
    with pytest.raises(ShardError, match=r"train-000000.parquet: missing or damaged \(row 2"):
        reader.read([2])


def test_a_missing_and_a_truncated_shard_are_named(store: Store) -> None:
    manifest = pack(store, ROWS[:5], ROWS[5:])
    first, second = manifest.splits["train"].shards
    store.delete(first.key)
    store.write(second.key, store.read(second.key)[:-1000])
    for index, key in ((0, first.key), (7, second.key)):
        with pytest.raises(ShardError, match=f"{key}: missing or damaged"):
            ShardReader(store, manifest, "train").read([index])


def test_a_row_count_that_differs_from_the_manifest_is_refused(store: Store) -> None:
    manifest = pack(store, ROWS)
    split = manifest.splits["train"]
    wrong = replace(manifest, splits={"train": replace(split, shards=(replace(split.shards[0], rows=9),))})
    with pytest.raises(ShardError, match="10 rows, the manifest lists 9"):
        ShardReader(store, wrong, "train").read([0])


@pytest.mark.slow
def test_the_same_from_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    storage._S3.clear_instance_cache()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = open_store("s3://shards/data/toy", Storage(path="unused", endpoint=f"http://{host}:{port}"))
        store._fs().mkdir("shards")
        reader = ShardReader(store, pack(store, ROWS[:4], ROWS[4:]), "train")
        assert reader.read([9, 0, 4]) == [ROWS[9], ROWS[0], ROWS[4]]
        assert read_manifest(store).num_images("train") == 10
        store.delete("abc")
        with pytest.raises(ShardError, match=r"train-000001.parquet: missing or damaged"):
            reader.read([5])
    finally:
        server.stop()
