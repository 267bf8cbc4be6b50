"""The store on a real S3 server (moto on loopback) and on a folder: its operations, Ray Train's uploads, and the errors."""

import os
import pickle
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs
import pytest

from pipeline import CHECKSUMS
from pipeline.config.base import Storage
from pipeline.errors import StorageError
from pipeline.storage import store as storage
from pipeline.storage.probe import check, check_readable
from pipeline.storage.store import Object, Store, open_store
from tests.support.buckets import make_bucket

pytestmark = pytest.mark.usefixtures("credentials")


@pytest.fixture(params=["s3", "folder"])
def store(request: pytest.FixtureRequest, endpoint: str, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "new" / "store"), Storage(path="unused"))
    return make_bucket(endpoint)


def test_write_read_list_delete(store: Store) -> None:
    store.write("a/b.bin", b"one")
    store.write("a/c/d.bin", b"two")
    store.write("ab.bin", b"three")
    assert store.read("a/b.bin") == b"one"
    assert store.exists("a/c/d.bin")
    assert not store.exists("a/nothing")
    assert store.list() == ["a/b.bin", "a/c/d.bin", "ab.bin"]
    assert store.list("a") == ["a/b.bin", "a/c/d.bin"]
    store.delete("a")
    store.delete("a")
    assert store.list() == ["ab.bin"]
    assert store.list("nothing") == []


def test_a_value_is_replaced_whole_and_by_another_process_seen_at_once(store: Store) -> None:
    store.write("key", b"old")
    other = pickle.loads(pickle.dumps(store))
    assert other == store
    assert hash(other) == hash(store)
    other.write("key", b"new")
    other.write("later", b"")
    assert store.read("key") == b"new"
    assert store.list() == ["key", "later"]


def test_ranges_of_several_keys(store: Store) -> None:
    store.write("a", b"0123456789")
    store.write("b", b"abcdefghij")
    assert store.read_ranges([("a", 2, 5), ("b", 0, 1), ("a", 9, 10)]) == [b"234", b"a", b"9"]


def test_join_and_url(store: Store) -> None:
    below = store.join("data", "camvid")
    below.write("manifest.json", b"{}")
    assert store.read("data/camvid/manifest.json") == b"{}"
    assert below.url("x/y") == f"{store.root}/data/camvid/x/y"


def test_directory_markers_are_not_keys(endpoint: str) -> None:
    store = make_bucket(endpoint)
    store.write("run/file", b"x")
    store._fs().call_s3("put_object", Bucket=store.root.split("/")[2], Key="some/prefix/run/dir/", Body=b"")
    assert store.list() == ["run/file"]


def test_a_listing_has_sizes_and_versions_that_change_with_the_content(store: Store) -> None:
    store.write("b/x", b"12345")
    store.write("a", b"")
    before = store.listing()
    assert [(found.key, found.size) for found in before] == [("a", 0), ("b/x", 5)]
    assert store.listing("b") == before[1:]
    assert before[1].version == (
        "827ccb0eea8a706c4c34a16891f84e7b" if store.is_s3 else str(Path(store.url("b/x")).stat().st_mtime_ns)
    )
    store.write("b/x", b"54321")
    after = store.listing()
    assert after[0] == before[0]
    assert after[1] == Object("b/x", 5, after[1].version)
    assert after[1].version != before[1].version


def test_a_missing_key_is_named_by_its_full_address(store: Store) -> None:
    for call in (lambda: store.read("a/gone"), lambda: store.read_ranges([("a/gone", 0, 1)])):
        with pytest.raises(FileNotFoundError, match=f"'{store.url('a/gone')}'"):
            call()
    assert store.size("a/gone") == 0
    assert store.read_ranges([]) == []


def test_a_source_with_nothing_in_it_is_reported(store: Store) -> None:
    source = store.join("source")
    store.write("other", b"x")
    with pytest.raises(StorageError, match=rf"{source.root}.*correct data.source"):
        check_readable(source)
    source.write("deep/below/x.png", b"x")
    check_readable(source)


def test_a_source_that_cannot_be_listed_is_reported(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none: cannot be read \(No such file or directory\): correct predict.images"):
        check_readable(Store(str(tmp_path / "none")), "predict.images")
    with pytest.raises(StorageError, match=r"s3://none/p at .*: bucket `none` does not exist: create it, or correct data.source"):
        check_readable(Store("s3://none/p", endpoint))


def test_the_patience_of_the_settings_reaches_every_store(tmp_path: Path) -> None:
    assert open_store("s3://b/p", Storage(path="unused", patience_s=7)).join("below").patience_s == 7


def test_ray_trains_own_upload_and_download(store: Store, tmp_path: Path) -> None:
    from ray.train.v2._internal.execution import storage as train_storage

    files = {"model": secrets.token_bytes(10_000_000), "optimizer": secrets.token_bytes(300_000), "small": b"x"}
    (tmp_path / "up").mkdir()
    for name, data in files.items():
        (tmp_path / "up" / name).write_bytes(data)
    fs, path = store.arrow()
    context = train_storage.StorageContext(path, experiment_dir_name="run", storage_filesystem=fs)
    target = f"{context.experiment_fs_path}/step-000001"
    train_storage._upload_to_fs_path(str(tmp_path / "up"), pickle.loads(pickle.dumps(fs)), target)
    assert {"run/step-000001/model", "run/step-000001/optimizer", "run/step-000001/small"} <= set(store.list())
    train_storage._download_from_fs_path(fs, target, str(tmp_path / "down"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "down").iterdir()} == files
    train_storage.delete_fs_path(fs, target)
    assert store.list("run/step-000001") == []


def test_checksum_defaults_are_set_but_never_overrule_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    first, second = CHECKSUMS
    monkeypatch.delenv(first, raising=False)
    monkeypatch.setenv(second, "when_supported")
    open_store(str(tmp_path), Storage(path="unused"))
    assert (os.environ[first], os.environ[second]) == ("when_required", "when_supported")


def test_check_passes_and_leaves_nothing(store: Store) -> None:
    check(store)
    assert store.list() == []


def test_endpoint_comes_from_the_environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert open_store("s3://b/p", Storage(path="unused")).endpoint == endpoint
    assert open_store("s3://b/p", Storage(path="unused", endpoint="http://other:1")).endpoint == "http://other:1"


def test_missing_bucket_is_named(endpoint: str) -> None:
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/p at http.*bucket `no-such-bucket` does not exist: create it"):
        check(open_store("s3://no-such-bucket/p", Storage(path="unused", endpoint=endpoint)))


@pytest.mark.slow
def test_unreachable_endpoints_that_refuse_or_are_silent_are_reported_within_15_seconds() -> None:
    def seconds_until_error(url: str) -> float:
        start = time.monotonic()
        with pytest.raises(StorageError, match=rf"s3://bucket/p at {url}: cannot be reached .* is the store up"):
            check(open_store("s3://bucket/p", Storage(path="unused", endpoint=url)))
        return time.monotonic() - start

    with socket.socket() as refusing, socket.socket() as silent:
        for server in (refusing, silent):
            server.bind(("127.0.0.1", 0))
        silent.listen()
        urls = [f"http://127.0.0.1:{server.getsockname()[1]}" for server in (refusing, silent)]
        with ThreadPoolExecutor(2) as threads:
            assert max(threads.map(seconds_until_error, urls)) < 15


def test_an_endpoint_without_scheme_is_named() -> None:
    with pytest.raises(StorageError, match=r"storage.endpoint = 'localhost:9000': must be a URL such as http"):
        check(open_store("s3://bucket/p", Storage(path="unused", endpoint="localhost:9000")))


def test_missing_credentials_are_named(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="no credentials: set AWS_ACCESS_KEY_ID"):
        check(open_store("s3://bucket/p", Storage(path="unused", endpoint=endpoint)))


def test_refused_credentials_are_named(tmp_path: Path) -> None:
    from botocore.exceptions import ClientError

    refusal = {"Error": {"Code": "SignatureDoesNotMatch", "Message": "The signature does not match"}}
    error = PermissionError("The signature does not match")
    error.__cause__ = ClientError(refusal, "PutObject")
    explained = str(storage.explain(Store("s3://bucket/p", "http://store:9000"), error))
    assert "s3://bucket/p at http://store:9000: access refused" in explained
    assert "AWS_SECRET_ACCESS_KEY" in explained


def test_lost_data_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def loses(source: str, destination: str, **_: object) -> None:
        """Behaves like pyarrow.fs.copy_files with a store that answers 411 to UploadPart: returns, but stores nothing."""

    monkeypatch.setattr(pyarrow.fs, "copy_files", loses)
    with pytest.raises(StorageError, match=r"differ from the data written.*AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        check(open_store(str(tmp_path), Storage(path="unused")))


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        StorageError, match=r"file/store: cannot be created or written \(Not a directory\): choose another folder"
    ):
        check(open_store(str(tmp_path / "file" / "store"), Storage(path="unused")))


@pytest.mark.parametrize(("url", "fault"), [("s3://", "has no bucket"), ("gs://b/p", "must be s3://BUCKET/PREFIX or a folder")])
def test_other_urls_are_refused(url: str, fault: str) -> None:
    with pytest.raises(StorageError, match=fault):
        open_store(url, Storage(path="unused"))


def test_a_fault_of_reading_does_not_advise_on_writing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"/folder: cannot be used \(Is a directory\): check the path and its permissions"):
        open_store(str(tmp_path), Storage(path="unused")).read("folder")


def test_a_file_and_its_folders_are_on_the_disk_before_the_write_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def on_disk(handle: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    def renamed(old: Path, new: str) -> None:
        done.append(f"rename to {new}")
        replace(old, new)

    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", on_disk)
    monkeypatch.setattr(os, "replace", renamed)
    Store(str(tmp_path / "run")).write("step-000010/model", b"weights")
    folder = f"{tmp_path}/run/step-000010"
    assert done[0].startswith(f"{folder}/.")
    assert done[1:] == [f"rename to {folder}/model", folder, f"{tmp_path}/run", str(tmp_path)]
    del done[:]
    Store(str(tmp_path / "run")).write("mask", b"png", durable=False)
    assert done == [f"rename to {tmp_path}/run/mask"]


def test_a_link_without_target_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "disk" / "a.png")
    assert Store(str(tmp_path)).listing() == [Object("a.png", len(f"{tmp_path}/disk/a.png"), storage.DANGLING)]


@pytest.mark.parametrize("setting", ["storage.path", "predict.output", "export.output"])
def test_a_folder_that_cannot_be_written_is_reported_with_the_setting_that_names_it(setting: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = f"^{tmp_path}/file: cannot be created or written .*: choose another folder for {setting}$"
    with pytest.raises(StorageError, match=words):
        check(Store(str(tmp_path / "file")), setting)


def test_a_folder_that_may_not_be_looked_into_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    locked = tmp_path / "source" / "locked"
    (locked / "images").mkdir(parents=True)
    (locked / "images" / "a.png").touch()
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest" in folder.name or "popen" in folder.name:  # pytest makes them for one user alone
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    locked.chmod(0o644)  # its names can be listed, and nothing else
    user = os.geteuid()
    if user == 0:  # root may look into every folder
        os.seteuid(65534)
    try:
        for root, named in ((locked.parent, locked / "images"), (locked / "images", locked / "images")):
            with pytest.raises(StorageError, match=rf"^{named}: cannot be used \(Permission denied\): check the path"):
                Store(str(root)).list()
    finally:
        os.seteuid(user)
        locked.chmod(0o755)
