"""Names are text: whatever characters they have, a store touches exactly its own keys, in a bucket and in a folder."""

import re
import secrets
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.base import Bucket, Storage
from pipeline.errors import StorageError
from pipeline.storage.probe import check, check_readable
from pipeline.storage.store import Store, open_store
from tests.support.buckets import make_bucket

pytestmark = pytest.mark.usefixtures("credentials")


@pytest.fixture(params=["s3", "folder"])
def store(request: pytest.FixtureRequest, endpoint: str, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store")) if request.param == "folder" else make_bucket(endpoint)


PATTERN = re.compile(r"[][*?{}!]")
PARTS = st.text(
    st.sampled_from("[]*?{}!#%+&'\" \\@~$;=,:^|<>aé道") | st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]),
    min_size=1,
).filter(lambda part: "/" not in part and part not in (".", "..") and len(part.encode()) < 200)


def touches_exactly_its_own(root: Store, name: str, parts: list[list[str]], between: str) -> None:
    """Writes, lists, reads and deletes below `name`, beside names that it matches as a pattern or that begin with it."""
    own = {f"{number}/{between.join(names)}": names[0].encode() for number, names in enumerate(parts)}
    siblings = {f"{name}1", name[:-1] or "x", PATTERN.sub("", name) or "x", PATTERN.sub("x", name), f"x{name}"} - {name}
    others = sorted(f"{sibling}/x" for sibling in siblings if sibling not in (".", ".."))
    store = root.join(name)
    for key in others:
        root.write(key, b"other")
    for key, data in own.items():
        store.write(key, data)
    assert {key: store.read(key) for key in store.list()} == own
    assert {key: store.size(key) for key in own} == {key: len(data) for key, data in own.items()}
    assert store.read_ranges([(key, 0, 1) for key in own]) == [data[:1] for data in own.values()]
    for key in own:
        assert store.list(key) == [key]
        store.delete(key)
        assert not store.exists(key)
    store.write("a/b", b"")
    store.write("c", b"")
    file_system, path = store.arrow()
    file_system.delete_file(f"{path}/c")
    file_system.delete_dir(f"{path}/a")
    store.write("d/e", b"")
    root.delete(name)
    assert root.list() == others
    for key in others:
        root.delete(key)
    assert root.list() == []


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=PARTS, parts=st.lists(st.lists(PARTS, min_size=1, max_size=2), min_size=1, max_size=3))
def test_any_name_touches_exactly_its_own_files(name: str, parts: list[list[str]], tmp_path: Path) -> None:
    touches_exactly_its_own(Store(str(tmp_path / secrets.token_hex(8))), name, parts, "/")


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=PARTS,
    parts=st.lists(st.lists(PARTS, min_size=1, max_size=2), min_size=1, max_size=2),
    between=st.sampled_from(["/", "//"]),
)
def test_any_name_touches_exactly_its_own_objects(name: str, parts: list[list[str]], between: str, endpoint: str) -> None:
    touches_exactly_its_own(make_bucket(endpoint), name, parts, between)


@pytest.mark.parametrize("name", ["ex[1]", "ex*", "ex?", "[e]x1", "{ex1,exA}", "ex1?versionId=1", "%65x1", "+", " ex1"])
def test_checking_and_deleting_a_prefix_leaves_the_siblings_that_it_matches_as_a_pattern(name: str, endpoint: str) -> None:
    bucket = make_bucket(endpoint)
    for sibling in ("ex1/a", "exA/b", "ex1"):
        bucket.write(sibling, b"of another experiment")
    own = open_store(f"{bucket.root}/{name}", Storage(path="unused", endpoint=endpoint))
    check(own)
    assert bucket.list() == ["ex1", "ex1/a", "exA/b"]
    file_system, path = own.arrow()
    file_system.create_dir(f"{path}/run")
    own.write("run/model", b"x")
    file_system.delete_dir(f"{path}/run")
    own.write("run/model", b"x")
    bucket.delete(name)
    assert bucket.list() == ["ex1", "ex1/a", "exA/b"]


def test_slashes_of_a_bucket_are_text(endpoint: str) -> None:
    bucket = make_bucket(endpoint)
    bucket.write("team//set/images/a.png", b"a")
    bucket.write("set//images/a.png", b"b")
    access = Storage(path="unused", endpoint=endpoint)
    for folder, data in {"team//set": b"a", "team//set/": b"a", "set//": b"b"}.items():
        store = open_store(f"{bucket.root}/{folder}", access)
        check_readable(store)
        assert [store.read(key) for key in store.list()] == [data]
        assert store.url("images/a.png") in [bucket.url(key) for key in bucket.list()]
    message = (
        rf"^{bucket.root}/set: its keys begin with an empty part, such as {bucket.root}/set//images/a.png: end data.source with"
    )
    with pytest.raises(StorageError, match=message):
        check_readable(open_store(f"{bucket.root}/set", access))
    with pytest.raises(StorageError, match=rf"^{bucket.root}/team/set at .*: no files found: correct data.source$"):
        check_readable(open_store(f"{bucket.root}/team/set", access))


def test_a_key_cannot_leave_the_root(store: Store) -> None:
    for key in ("../x", "a/../../x", "..", "./x"):
        for call in (store.read, store.exists, store.list, store.delete, lambda key: store.write(key, b"")):
            with pytest.raises(StorageError, match=r"has a part `\.` or `\.\.`: write the address without it"):
                call(key)
    with pytest.raises(StorageError, match=r"has a part `\.` or `\.\.`"):
        open_store("s3://bucket/a/../b", Storage(path="unused"))
    with pytest.raises(ValueError, match="never deleted"):
        store.delete("")


def test_a_folder_refuses_a_key_with_an_empty_part_which_would_be_another_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"`a//b` has an empty part"):
        Store(str(tmp_path)).write("a//b", b"")


def test_deleting_follows_no_link_out_of_the_folder(tmp_path: Path) -> None:
    outside, store = tmp_path / "outside", Store(str(tmp_path / "store"))
    outside.mkdir()
    (outside / "theirs").write_text("kept")
    store.write("run/own", b"")
    (tmp_path / "store" / "run" / "folder").symlink_to(outside)
    (tmp_path / "store" / "run" / "file").symlink_to(outside / "theirs")
    (tmp_path / "store" / "linked").symlink_to(outside)
    with pytest.raises(StorageError, match=r"linked/theirs: not deleted, because .*/linked is a link"):
        store.delete("linked/theirs")
    store.delete("linked")
    store.delete("run")
    assert (store.list(), (outside / "theirs").read_text()) == ([], "kept")


def test_the_longest_name_that_a_folder_takes_is_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("n" * 255, b"x")
    assert store.list() == ["n" * 255]


def test_a_folder_of_a_name_is_no_key(store: Store) -> None:
    store.write("name/x", b"x")
    assert (store.exists("name"), store.size("name")) == (False, 0)


def test_a_bucket_of_another_store_is_accessed_there(endpoint: str) -> None:
    made = make_bucket(endpoint)
    made.write("set/a.png", b"a")
    name = made.root.split("/")[2]
    access = Storage(path="unused", endpoint="http://elsewhere:1", buckets={
        name: Bucket(endpoint="http://nowhere:1"), f"{name}/some/prefix": Bucket(endpoint=endpoint)})  # fmt: skip
    assert open_store(f"{made.root}/set", access).read("a.png") == b"a"
    assert open_store(f"s3://{name}/other", access).endpoint == "http://nowhere:1"
    assert open_store(f"s3://{name}2", access).endpoint == "http://elsewhere:1"
