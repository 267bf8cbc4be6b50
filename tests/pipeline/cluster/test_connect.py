"""Which cluster is joined, and what is said if it is not there."""

import socket
import time

import pytest

from pipeline.cluster import connect
from pipeline.errors import ClusterError


def test_a_cluster_that_is_not_there_is_named_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "REACH_S", 1.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        started = time.monotonic()
        with pytest.raises(
            ClusterError, match=rf"^RAY_ADDRESS = {address}: no cluster answers within 1 s .*: start the cluster there"
        ):
            connect.join()
    assert time.monotonic() - started < 5


def test_the_address_for_submitting_is_told_from_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ClusterError, match=r"is the address for jobs.submit \(RAY_API_SERVER_ADDRESS\): set HOST:6379 instead"):
        connect.join()
