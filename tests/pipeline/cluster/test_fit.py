"""A training beside another cluster on the same machine."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from infra.processes import free_port
from jobs.cli import main
from jobs.train import run
from pipeline.config.load import load
from pipeline.data.prepare import prepare

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

CONFIG = "jobs/configs/demo.yaml"


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture
def other_cluster() -> Iterator[subprocess.Popen[bytes]]:
    """Another cluster of this machine, which ends with its process."""
    port = free_port(0)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # not tmp_path: Ray's sockets need short paths
        command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=1",
                   "--include-dashboard=false", f"--port={port}", f"--temp-dir={folder}",
                   f"--ray-client-server-port={free_port(0)}",
                   f"--dashboard-agent-listen-port={free_port(0)}"]  # fmt: skip
        with open(os.path.join(folder, "ray.txt"), "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                       env=os.environ | {"RAY_AUTH_MODE": "disabled"})  # fmt: skip
        try:
            for _ in range(600):
                if answers(port) or process.poll() is not None:
                    break
                time.sleep(0.1)
            assert process.poll() is None
            assert answers(port)
            yield process
            assert answers(port), "the other cluster has ended"
        finally:
            process.terminate()  # ends all its processes
            process.wait()


def outputs() -> str:
    """What the processes of the joined cluster have written."""
    folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    return "".join(file.read_text(errors="replace") for file in folder.glob("worker-*"))


def test_a_training_asks_its_own_cluster_and_leaves_the_other_one_alone(
    local_ray: None, other_cluster: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    words = [f"storage.path={tmp_path}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "tracking.register_as=null",
             "data.name=tiny", "data.crop_size=33", "data.generated={num_train: 4, num_val: 2, size: 33}",
             "train.workers=1", "train.global_batch=2", "train.steps=2"]  # fmt: skip
    prepare(load(CONFIG, words))
    before = len(outputs())
    assert main(run, [CONFIG, *words]) == 0
    assert not re.search("multiple active|Failed to query", outputs()[before:])
    for _ in range(100):
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            break
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"], "the workers' CPUs are still reserved"
    assert other_cluster.poll() is None
