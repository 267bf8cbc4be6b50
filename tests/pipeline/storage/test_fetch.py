"""A published file is fetched once, and only the one that was published: a real web server."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import fetch

DATA = bytes(range(256)) * 100
SHA256 = hashlib.sha256(DATA).hexdigest()[:8]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server with one file; the cache is empty."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/net.pth").write_bytes(DATA)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "www")) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def test_a_file_is_fetched_once(server: str, tmp_path: Path) -> None:
    assert fetch.fetched(f"{server}/net.pth", SHA256) == DATA
    (tmp_path / "www/net.pth").unlink()
    assert fetch.fetched(f"{server}/net.pth", SHA256) == DATA
    assert [path.name for path in fetch.cache().iterdir()] == ["net.pth"]


def test_another_file_is_refused_and_not_kept(server: str, tmp_path: Path) -> None:
    (tmp_path / "www/net.pth").write_bytes(DATA[:-1])
    with pytest.raises(StorageError, match=rf"net\.pth: gave another file, not the one whose sha256 begins with {SHA256}: put"):
        fetch.fetched(f"{server}/net.pth", SHA256)
    assert not fetch.cache().exists()


def test_a_damaged_file_of_the_cache_is_named_and_stays(server: str) -> None:
    fetch.cache().mkdir(parents=True)
    (fetch.cache() / "net.pth").write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"cache/ccnet/net\.pth: is not the published file"):
        fetch.fetched(f"{server}/net.pth", SHA256)
    assert (fetch.cache() / "net.pth").read_bytes() == b"mine"


@pytest.mark.parametrize("address", ["{server}/none.pth", "http://127.0.0.1:9/none.pth"])
def test_without_the_file_or_a_network_the_place_for_it_is_said(server: str, address: str) -> None:
    with pytest.raises(StorageError, match=r"none\.pth: cannot be fetched .*: put the file none\.pth into /.*/cache/ccnet"):
        fetch.fetched(address.format(server=server), SHA256)
