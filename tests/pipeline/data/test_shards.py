"""Shards and manifest: entries locate unchanged bytes, other tools can read shards, damage is an error that names the file."""

import json
import secrets
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import binary, lists

from pipeline.config.base import Storage
from pipeline.data.index import content, digest
from pipeline.data.manifest import MANIFEST, Manifest, Split, read_manifest, write_manifest
from pipeline.data.shards import Entry, Row, write_shard
from pipeline.errors import ShardError
from pipeline.storage.store import Store, open_store

ROWS = [Row(f"sample-{i}", secrets.token_bytes(5000 + i), secrets.token_bytes(90 + i), 360 + i, 480) for i in range(10)]
KEY = "abc/train-000000.parquet"


def manifest_of(entries: list[Entry], **changes: object) -> Manifest:
    train = Split(len(entries), "abc/index-train", content(entries), 50_000, (3, 4), (10, 2), 5, (360, 480), (369, 480))
    made = Manifest("toy", "camvid", ("a", "b"), ((1, 2, 3), (4, 5, 6)), {0: 0, 4: 1, 9: 255}, {"train": train}, True, "s", 1,
                    (("train/a", "val/b"),))  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), Storage(path="unused"))


def assert_entries_locate_the_bytes(store: Store, rows: list[Row]) -> list[Entry]:
    entries = write_shard(store, KEY, rows)
    data = store.read(KEY)
    for row, e in zip(rows, entries, strict=True):
        assert (e.sample_id, e.image, e.label, e.height, e.width) == (row.sample_id, KEY, KEY, row.height, row.width)
        assert data[e.image_start :][: e.image_bytes] == row.image
        assert data[e.label_start :][: e.label_bytes] == row.label
        assert (e.image_sha256, e.label_sha256) == (digest(row.image), digest(row.label))
        assert e.image_start + e.image_bytes <= e.label_start  # one request can read both
    return entries


def test_entries_name_the_place_of_every_image_and_label(store: Store) -> None:
    entries = assert_entries_locate_the_bytes(store, ROWS)
    assert [e.image_bytes for e in entries] == [len(row.image) for row in ROWS]
    # Image and label are adjacent: one request for both reads only the header between them in addition.
    assert all(e.label_start - e.image_start - e.image_bytes < 100 for e in entries)


def test_entries_are_right_for_images_made_of_one_another_and_for_tiny_labels(store: Store) -> None:
    image, label = ROWS[0].image, b"\x15\x00"
    images = [image, image + image, label + image[10:], image[100:200], image, label, b"\x00", b""]
    labels = [label, image, image + label, b"\x15", b"", label, b"\x00\x00", image[:50]]
    rows = [Row(f"{i}", *pair, 1, 1) for i, pair in enumerate(zip(images, labels, strict=True))]
    assert_entries_locate_the_bytes(store, [*rows, *rows[::-1]])


@settings(max_examples=100, deadline=None)
@given(lists(st.tuples(binary(max_size=4), binary(max_size=4)), min_size=1, max_size=6))
def test_entries_are_right_for_any_bytes(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[bytes, bytes]]) -> None:
    store = open_store(str(tmp_path_factory.getbasetemp() / "any"), Storage(path="unused"))
    assert_entries_locate_the_bytes(store, [Row("s", *pair, 1, 1) for pair in pairs])


def test_a_shard_is_plain_parquet_with_one_sample_a_row_group(store: Store) -> None:
    write_shard(store, KEY, ROWS)
    file = pq.ParquetFile(store.url(KEY), page_checksum_verification=True)
    assert file.num_row_groups == 10
    assert file.read().to_pylist() == [row._asdict() for row in ROWS]
    assert pq.read_table(store.url(KEY), columns=["sample_id"]).column(0).to_pylist() == [row.sample_id for row in ROWS]


def test_a_flipped_bit_in_a_shard_is_found_by_other_readers_too(store: Store) -> None:
    entry = write_shard(store, KEY, ROWS)[2]
    data = bytearray(store.read(KEY))
    data[entry.image_start + 100] ^= 1
    store.write(KEY, bytes(data))
    with pytest.raises((OSError, pa.ArrowInvalid), match="CRC"):
        pq.ParquetFile(store.url(KEY), page_checksum_verification=True).read_row_group(2)


def test_the_manifest_comes_back_equal_and_sealed(store: Store) -> None:
    written = write_manifest(store, manifest_of(write_shard(store, KEY, ROWS)))
    assert read_manifest(store) == written
    assert written.fingerprint == written.sealed().fingerprint
    assert len(written.fingerprint) == 64
    assert (written.num_images("train"), written.num_images("val")) == (10, 0)
    table = written.label_lookup()
    assert (table.dtype, table[[0, 4, 9, 77]].tolist()) == (np.uint8, [0, 1, 255, 255])


def test_the_fingerprint_follows_what_the_data_are(store: Store) -> None:
    whole = manifest_of(write_shard(store, KEY, ROWS))
    label = [ROWS[0]._replace(label=b"other"), *ROWS[1:]]
    changed = [manifest_of(write_shard(store, KEY, rows)) for rows in (label, ROWS[:9], ROWS[::-1], [ROWS[0]._replace(height=1)])]
    changed += [
        replace(whole, label_map={0: 0, 4: 1, 9: 1}),
        replace(whole, class_names=("a", "c")),
        replace(whole, name="other"),
    ]
    fingerprints = {manifest.sealed().fingerprint for manifest in (whole, *changed)}
    assert len(fingerprints) == 8


def test_the_fingerprint_is_the_same_wherever_the_data_lie(store: Store) -> None:
    entries = write_shard(store, KEY, ROWS)
    here = manifest_of(entries)
    moved = [e._replace(image="image.png", image_start=0, label="label.png", label_start=0) for e in entries]
    there = manifest_of(moved, packed=False, source="another listing")
    there = replace(there, splits={"train": replace(there.splits["train"], index="xyz/index-train")})
    assert there.sealed().fingerprint == here.sealed().fingerprint


def test_a_missing_manifest_is_an_error_with_the_command(store: Store) -> None:
    with pytest.raises(ShardError, match=r"manifest.json: no such data set: run python -m jobs.prepare CONFIG first"):
        read_manifest(store)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 1}, "version 1, this code reads 2"),
        ({"version": 3}, "version 3, this code reads 2"),
        ({"name": "edited"}, "fingerprint does not match"),
        ({"packed": None, "fingerprint": "0" * 64}, "fingerprint does not match"),
        ({"splits": {"train": {}}}, "damaged"),
        ({"splits": None}, "damaged"),
        ({"label_map": {"x": 1}}, "damaged"),
        ({"unknown": 1}, "damaged"),
    ],
)
def test_a_changed_manifest_is_refused(store: Store, change: dict[str, object], fault: str) -> None:
    write_manifest(store, manifest_of(write_shard(store, KEY, ROWS)))
    store.write(MANIFEST, json.dumps({**json.loads(store.read(MANIFEST)), **change}).encode())
    with pytest.raises(ShardError, match=rf"manifest.json: .*{fault}.* run python -m jobs.prepare CONFIG again"):
        read_manifest(store)


@pytest.mark.parametrize("text", [b'{"version": 2, ', b"", b"\xff\xfe", b"[]", b"7", b"null"])
def test_a_torn_manifest_is_refused(store: Store, text: bytes) -> None:
    store.write(MANIFEST, text)
    with pytest.raises(ShardError, match=r"manifest.json: .* run python -m jobs.prepare CONFIG again"):
        read_manifest(store)


def test_a_manifest_of_a_split_that_is_no_table_is_refused(store: Store) -> None:
    write_manifest(store, manifest_of(write_shard(store, KEY, ROWS)))
    tree = json.loads(store.read(MANIFEST))
    for splits in ({"train": None}, {"train": [1, 2]}, [1], "train"):
        store.write(MANIFEST, json.dumps({**tree, "splits": splits}).encode())
        with pytest.raises(ShardError, match="damaged"):
            read_manifest(store)
