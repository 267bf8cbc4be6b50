"""A cluster of two nodes, the second of which has another disk: an empty one lies over a folder of its own mount namespace."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from pipeline.images import codec

ROOT = Path(__file__).parents[2]
MOUNTS = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


class TwoDisks:
    """`disk` is a folder of the first node; the second one sees an empty folder there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, folder / "disk"
        self.disk.mkdir()
        for split in ("train", "val"):
            for kind in ("images", "masks"):
                (self.disk / "set" / kind / split).mkdir(parents=True)
                picture = np.tile(np.arange(2, dtype=np.uint8), (33, 17))[:, :33] + (split == "val" and kind == "images")
                (self.disk / "set" / kind / split / "a.png").write_bytes(codec.encode_png(picture.astype(np.uint8)))
        (self.disk / "set" / "classes.yaml").write_text("- road\n- car\n")
        shutil.copytree(self.disk / "set", self.folder / "copy")
        self.environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

    def run(self, verb: str, *words: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        own = [f"storage.path={self.folder}/shared", f"tracking.uri=sqlite:///{self.folder}/mlflow.db", "data.name=own",
               "data.layout=folders", f"data.source={self.folder}/copy", "data.crop_size=33", "data.scale=[1.0, 1.0]",
               "train.steps=1", "train.workers=1", "train.global_batch=1"]  # fmt: skip
        command = [sys.executable, "-m", f"jobs.{verb}", "jobs/configs/demo.yaml", *own, *words]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=200)
        return done.returncode, done.stdout + done.stderr


@contextmanager
def two_disks(folder: Path) -> Iterator[TwoDisks]:
    """Starts the nodes; their environment names them as the cluster to join. Needs MOUNTS."""
    made = TwoDisks(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        # Ray reads the variable at its first import, which the pipeline's may come before: then the head would listen on loopback
        # alone, where the second node does not look.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        start = f"mount -t tmpfs none {made.disk} && exec {Path(sys.executable).parent}/ray start --block --num-cpus=2 " \
                f"--object-store-memory={100 * 2**20} --address={cluster.address}"  # fmt: skip
        second = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", start],
            env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},  # the command line refuses a second node otherwise
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 90
            while len(cluster.global_state.node_table()) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            made.environment["RAY_ADDRESS"] = cluster.address
            yield made
        finally:
            second.terminate()
            try:
                second.wait(30)
            except subprocess.TimeoutExpired:  # it still looks for the head; another error says why
                second.kill()
            cluster.shutdown()
