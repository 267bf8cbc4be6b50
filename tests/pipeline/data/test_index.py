"""The index reads entries by position in bounded memory, with few requests, and names every damaged page."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.base import Storage
from pipeline.data import index
from pipeline.data.index import CACHED_PAGES, MEMBERS_ROWS, PAGE_ROWS, Entry, Index, content, digest, page_key, write_index
from pipeline.errors import ShardError
from pipeline.storage.store import Store, open_store

FOLDER = "abc/index-train"


def entry(position: int) -> Entry:
    start, size = position * 2**32, 5000 + position  # offsets beyond 32 bits
    image, label = digest(b"i%d" % position), digest(b"l%d" % position)
    return Entry(f"sample-{position}", "a.parquet", start, size, image, "b.parquet", start + size, 90, label, 360, 480)


def written(store: Store, num_images: int, members: Sequence[Sequence[int]] = ()) -> Index:
    write_index(store, FOLDER, [entry(i) for i in range(num_images)], [np.array(m, np.int64) for m in members])
    return Index(store, FOLDER, num_images)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), Storage(path="unused"))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The keys of each request to any store. The cache starts empty."""
    index._PAGES.clear()
    made: list[list[str]] = []
    fetch = Store.read_ranges

    def counting(self: Store, ranges: Sequence[tuple[str, int, int | None]]) -> list[bytes]:
        made.append([key for key, _, _ in ranges])
        return fetch(self, ranges)

    monkeypatch.setattr(Store, "read_ranges", counting)
    return made


@pytest.mark.parametrize("num_images", [1, 255, 256, 257, 1000])
def test_every_entry_comes_back_in_the_requested_order(store: Store, num_images: int) -> None:
    found = written(store, num_images)
    assert len(store.list()) == -(-num_images // PAGE_ROWS)
    assert found.entries(range(num_images)) == [entry(i) for i in range(num_images)]
    backwards = [num_images - 1, 0, num_images // 2, num_images - 1]
    assert found.entries(backwards) == [entry(i) for i in backwards]
    assert found.entries([]) == []
    assert pickle.loads(pickle.dumps(found)).entries([0]) == [entry(0)]


@pytest.mark.parametrize("position", [-1, 256, 257])
def test_a_position_outside_is_refused(store: Store, position: int) -> None:
    with pytest.raises(IndexError, match=f"sample {position}: the split has 256"):
        written(store, 256).entries([0, position])


def test_the_members_of_a_class_come_by_their_place_in_its_list(store: Store) -> None:
    many = range(3, 3 * (MEMBERS_ROWS + 2) + 3, 3)
    found = written(store, 10, [[0, 4, 9], [], many])
    assert found.members(0, np.array([2, 0, 1, 2])).tolist() == [9, 0, 4, 9]
    places = [0, MEMBERS_ROWS - 1, MEMBERS_ROWS, MEMBERS_ROWS + 1, 1]
    assert found.members(2, np.array(places)).tolist() == [many[p] for p in places]
    assert found.members(2, np.array([], np.int64)).tolist() == []


def test_a_page_is_fetched_once_while_it_is_cached(store: Store, requests: list[list[str]]) -> None:
    found = written(store, 1000, [[1, 2]])
    for _ in range(3):
        assert found.entries([300, 999, 301]) == [entry(300), entry(999), entry(301)]
        assert found.members(0, np.array([1])).tolist() == [2]
    assert requests == [[page_key(FOLDER, 1), page_key(FOLDER, 3)], [f"{FOLDER}/class-000/00000000.i64"]]
    found.entries([0, 300])
    assert requests[2:] == [[page_key(FOLDER, 0)]]


def test_a_batch_out_of_many_images_touches_only_its_pages(store: Store, requests: list[list[str]]) -> None:
    found = written(store, 100_000)
    assert found.entries([99_999, 5, 70_000]) == [entry(99_999), entry(5), entry(70_000)]
    assert requests == [[page_key(FOLDER, number) for number in (0, 70_000 // PAGE_ROWS, 99_999 // PAGE_ROWS)]]
    assert len(index._PAGES) == 3


def test_the_cache_keeps_the_newest_pages_and_never_more_than_it_may(store: Store, requests: list[list[str]]) -> None:
    found = written(store, (CACHED_PAGES + 4) * PAGE_ROWS)
    for start in range(0, found.num_images, PAGE_ROWS):
        found.entries([start])
        found.entries([0])  # stays cached: it is always among the most recently used
        assert len(index._PAGES) <= CACHED_PAGES
    num_requests = len(requests)
    found.entries([0, found.num_images - 1])
    assert len(requests) == num_requests
    found.entries([PAGE_ROWS])
    assert len(requests) == num_requests + 1


def test_one_request_may_ask_for_more_pages_than_are_cached(store: Store, requests: list[list[str]]) -> None:
    found = written(store, (CACHED_PAGES + 4) * PAGE_ROWS)
    positions = range(0, found.num_images, PAGE_ROWS)
    assert [e.sample_id for e in found.entries(positions)] == [f"sample-{p}" for p in positions]
    assert len(index._PAGES) == CACHED_PAGES


def test_stores_with_equal_keys_keep_their_own_pages(tmp_path: Path) -> None:
    first, second = (open_store(str(tmp_path / name), Storage(path="unused")) for name in "ab")
    written(first, 3)
    write_index(second, FOLDER, [entry(7)], [])
    assert Index(first, FOLDER, 3).entries([0]) == [entry(0)]
    assert Index(second, FOLDER, 1).entries([0]) == [entry(7)]


PAGE, MEMBERS = page_key(FOLDER, 1), f"{FOLDER}/class-000/00000000.i64"


@pytest.mark.parametrize("key", [PAGE, MEMBERS])
@pytest.mark.parametrize("kept", [None, 0, 5, 16, -1, -8])
def test_a_missing_or_truncated_page_is_named_with_the_fix(store: Store, key: str, kept: int | None) -> None:
    found = written(store, 300, [[0, 4, 9]])
    whole = store.read(key)
    if kept is None:
        store.delete(key)
    else:
        store.write(key, whole[:kept])
    with pytest.raises(ShardError, match=f"{store.url(key)}: .* python -m jobs.prepare CONFIG again"):
        found.entries([0, 299]) if key == PAGE else found.members(0, np.array([2]))
    assert found.entries([1]) == [entry(1)]  # another page
    store.write(key, whole)
    assert found.entries([299]) == [entry(299)]
    assert found.members(0, np.array([2])).tolist() == [9]


@pytest.mark.parametrize("key", [page_key(FOLDER, 0), MEMBERS])
def test_every_flipped_bit_in_a_page_is_found(store: Store, key: str) -> None:
    found = written(store, 2, [[0, 1]])
    whole = store.read(key)
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        store.write(key, bytes(data))
        with pytest.raises(ShardError, match=f"{store.url(key)}: index page damaged: delete it and run"):
            found.members(0, np.array([0])) if key == MEMBERS else found.entries([0])


def test_the_content_follows_ids_sizes_and_digests_but_not_the_place() -> None:
    entries = [entry(0), entry(1)]
    moved = [e._replace(image="c", image_start=1, label="d", label_start=2) for e in entries]
    assert content(entries) == content(moved) != content(entries[::-1])
    for change in ({"sample_id": "x"}, {"height": 1}, {"width": 1}, {"image_sha256": b""}, {"label_sha256": b""}):
        assert content([entries[0], entries[1]._replace(**change)]) != content(entries)
