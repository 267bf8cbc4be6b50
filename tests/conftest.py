"""Every test checks shapes and dtypes of ccnet's signatures; all tests share one cluster, one MLflow server and one stack.

Tests that start Ray, a server or a browser are marked `slow`. The others run first and, with `-n`, in parallel.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import jaxtyping
import pytest
import torch
from moto.server import ThreadedMotoServer

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # for ccnet.kernels: triton reads it at its first import
if "PYTEST_XDIST_WORKER" in os.environ:  # `make` runs two test processes, one a core
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")
jaxtyping.install_import_hook("ccnet", "beartype.beartype")  # must run before ccnet is first imported

import ray  # noqa: E402

from infra.stack_env import environment  # noqa: E402
from pipeline.cluster import connect  # noqa: E402
from pipeline.storage import s3  # noqa: E402
from tests.support.mlflow_server import MlflowServer  # noqa: E402

ORDER = ("chaos", "own", "local_ray", "stack")
"""The order of tests, by the cluster that they use; `own` is a cluster that a test starts itself. A cluster ends before the next
one starts, because even an idle one takes a fifth of a core. A test that asks for its cluster while it runs names it in its mark:
`pytest.mark.slow("local_ray")`."""


class LocalRay(NamedTuple):
    """Files that control and record the session's cluster: tests/support/injected."""

    fits: Path
    """File with the number of images of a pass that fit into memory. Without this file all fit."""
    imports: Path
    """Folder where each process writes what it imports."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests: first those that start nothing, then those of each cluster together."""

    def group(item: pytest.Item) -> int:
        if not (slow := item.get_closest_marker("slow")):
            return -1
        used = {*getattr(item, "fixturenames", ()), *slow.args, *(["chaos"] if "tests/chaos" in str(item.path) else [])}
        return max((ORDER.index(name) for name in used if name in ORDER), default=ORDER.index("own"))

    items.sort(key=group)


@pytest.fixture(autouse=True)
def no_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that starts a cluster and is not marked `slow`, and one that ends the cluster of other tests."""
    before = ray.is_initialized()
    yield
    assert before or not ray.is_initialized() or request.node.get_closest_marker("slow"), "started Ray: mark it slow"
    assert ray.is_initialized() or not before, "ended the cluster of later tests: start a process for it"


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    """A new cluster of two CPUs, even if the environment names another one, with credentials for the tests' S3 servers.

    Tests can limit its memory and read what its processes import: tests/support/injected.
    """
    folders = [str(Path(__file__).parent / "support" / "injected"), os.environ.get("PYTHONPATH")]
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "CCNET_TEST_FITS": str(tmp_path_factory.mktemp("memory") / "fits"),
        "CCNET_TEST_IMPORTS": str(tmp_path_factory.mktemp("imports")),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # Ray's log handler keeps a stream that pytest closes after ray.init; otherwise logging prints errors about that.
        patch.setattr(logging, "raiseExceptions", False)
        with pytest.MonkeyPatch.context() as inherited:  # the cluster's processes inherit them, those of later tests do not
            for name, value in variables.items():
                inherited.setenv(name, value)
            connect.join(num_cpus=2)
        yield LocalRay(Path(variables["CCNET_TEST_FITS"]), Path(variables["CCNET_TEST_IMPORTS"]))
        ray.shutdown()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The MLflow server of all tests that do not stop it."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a running stack. Set them for a new process only, because Ray reads some at its first import."""
    ray.shutdown()  # ends local_ray, whose tests are over
    root = tmp_path_factory.mktemp("stack")
    command = [sys.executable, "-m", "infra.stack"]
    try:
        subprocess.run([*command, "up", "--root", str(root)], check=True)
        yield environment(root)
    finally:
        subprocess.run([*command, "down", "--root", str(root)], check=True)


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """An S3 server (moto)."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for `endpoint`."""
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    # fsspec caches one client per set of arguments, with the credentials that were set when it was made.
    s3.S3FileSystem.clear_instance_cache()
