"""What tests of the pipeline share: an S3 server (moto on loopback), credentials for it, a small Ray cluster."""

from collections.abc import Iterator

import pytest
import ray
from moto.server import ThreadedMotoServer

from pipeline import cluster, storage


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    # fsspec keeps one client per set of arguments, and with it the credentials it was made with.
    storage._S3.clear_instance_cache()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Two CPUs on this machine, whatever cluster the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.shutdown()
        cluster.connect(num_cpus=2)
        yield
        ray.shutdown()
