"""A place for trainings with faults: two Ray nodes, an S3 server behind a proxy and an MLflow server on this machine, all real.

    with Scene(folder) as scene:
        run = scene.start("name=killed")
        run.wait_for_step(7)
        os.kill(scene.workers()[0], signal.SIGKILL)
        run.succeed()

Every process of a scene carries its mark in an environment variable, so that no other process of the machine is ended.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from infra.services import JOB_STOP_S
from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.retention import folders
from pipeline.config.config import Config
from pipeline.config.load import load
from pipeline.data.prepare import prepare
from pipeline.storage.store import Store, open_store
from tests.chaos.run import ROOT, Run
from tests.support.faulty_store import FaultyStore
from tests.support.mlflow_server import MlflowServer

CONFIG = "jobs/configs/demo.yaml"
ALIKE = (
    "train.log_every=1", "faults.look_every=2", "tracking.register_as=null",
    # A node holds one worker and the tasks that feed it, never two workers.
    "train.cpus_per_worker=2", "data.cpus_per_task=0.5",
)  # fmt: skip
DEMO = ("train.steps=30", "train.validate_every=5", *ALIKE)
"""The demo with fewer steps."""
TINY = (
    "data.name=tiny", "data.crop_size=49", "data.generated={num_train: 32, num_val: 10, size: 49}", "train.global_batch=4",
    "train.steps=15", "train.validate_every=5", "train.learning_rate=0.01", *ALIKE,
    "model.backbone=resnet18", "model.gamma_init=0", "train.warmup_steps=0",  # steps of the small one are over before a strike
)  # fmt: skip
MARK = "CCNET_CHAOS_MARK"
NODE = {"num_cpus": 3, "object_store_memory": 200 * 2**20}
"""Of the CPUs that workers leave free, Ray Data counts only whole ones; with none it runs one task at a time."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Scene:
    """Two nodes with three logical CPUs each; the second can be removed. `folder` holds the servers' data.

    `overrides` apply to all its runs; `environment` is added to that of nodes and runs.
    """

    def __init__(self, folder: Path, overrides: tuple[str, ...] = TINY, environment: dict[str, str] | None = None) -> None:
        self.folder, self.overrides = folder, overrides
        self.mark = secrets.token_hex(8)
        self.bucket = f"chaos-{self.mark[:8]}"
        self.runs: list[Run] = []
        self.mlflow = MlflowServer(folder)
        self.s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.cluster: Cluster | None = None
        self.second: Any = None
        # The job server must start this `python`.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.own = {
            "PATH": path,
            MARK: self.mark,
            "RAY_AUTH_MODE": "disabled",
            "PYTHONUNBUFFERED": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_S),
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
            **CREDENTIALS,
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folders_before = temporary_folders()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # otherwise it logs a line for each request to the store
        with contextlib.ExitStack() as ends:
            self._open(ends)
            self.ends = ends.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ends.close()

    def _open(self, ends: contextlib.ExitStack) -> None:
        ends.callback(_set_environment, dict(os.environ))
        self.mlflow.start()
        ends.callback(self.mlflow.stop)
        self.s3.start()
        ends.callback(self.s3.stop)
        self.s3_url = "http://{}:{}".format(*self.s3.get_host_and_port())
        self.proxy = FaultyStore(self.s3_url)
        self.proxy.__enter__()
        ends.callback(lambda: self.proxy.__exit__(None, None, None))  # lose_store replaces the proxy
        self.own |= {"AWS_ENDPOINT_URL": self.proxy.endpoint, "MLFLOW_TRACKING_URI": self.mlflow.uri}
        os.environ.update(self.own)  # the nodes inherit it, and this process reads the store
        Store(f"s3://{self.bucket}", self.proxy.endpoint)._fs().mkdir(self.bucket)
        ends.callback(self.stop_cluster)
        self.start_cluster()
        ends.callback(self._kill_runs)
        prepare(self.config())

    def _kill_runs(self) -> None:
        for run in self.runs:
            if run.process.poll() is None:
                run.kill()

    def start_cluster(self) -> None:
        """Starts the head, which holds the controllers, and a second node."""
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": True, "dashboard_port": 0})
        self.add_second()

    def add_second(self) -> None:
        """Adds a second node; call it again after kill_second."""
        assert self.cluster
        self.second = self.cluster.add_node(**NODE)

    def kill_second(self) -> None:
        """Ends all processes of the second node by SIGKILL."""
        assert self.cluster
        self.cluster.remove_node(self.second, allow_graceful=False)

    def lose_store(self, seconds: float) -> None:
        """Refuses all connections to the store for this time."""
        port = int(self.proxy.endpoint.rpartition(":")[2])
        self.proxy.__exit__(None, None, None)
        time.sleep(seconds)
        self.proxy = FaultyStore(self.s3_url, port=port)
        self.proxy.__enter__()

    def stop_cluster(self) -> None:
        """Ends both nodes by SIGKILL, without keeping their state, and the dashboard processes that Ray's test cluster leaves."""
        if self.cluster:
            self.cluster.shutdown()
            self.cluster = None
        for pid in self.processes():
            if self.mlflow.process is None or _group(pid) != self.mlflow.process.pid:
                kill(pid)

    def config(self, *overrides: str) -> Config:
        """The configuration of a run in this scene."""
        return load(ROOT / CONFIG, [f"storage.path=s3://{self.bucket}", *self.overrides, *overrides])

    def words(self, verb: str, *overrides: str, submitted: bool = False) -> list[str]:
        """The command of a job in this scene; with `submitted`, through the cluster's job server."""
        module = ["jobs.submit", verb] if submitted else [f"jobs.{verb}"]
        return [sys.executable, "-m", *module, CONFIG, f"storage.path=s3://{self.bucket}", *self.overrides, *overrides]

    def start(self, *overrides: str, submitted: bool = False) -> Run:
        """Starts a training, or resumes it."""
        return self.run(self.words("train", *overrides, submitted=submitted))

    def run(self, words: list[str]) -> Run:
        """Starts a process that belongs to the scene."""
        run = Run(words, os.environ | self.own | self._address())
        self.runs.append(run)
        return run

    def _address(self) -> dict[str, str]:
        assert self.cluster
        dashboard = f"http://{self.cluster.head_node.webui_url}"
        return {"RAY_ADDRESS": str(self.cluster.address), "RAY_API_SERVER_ADDRESS": dashboard}

    def workers(self) -> list[int]:
        """Process ids of the training workers on this scene's nodes, oldest first; Ray names a process after its actor."""
        return [pid for pid, command in self.processes().items() if "RayTrainWorker" in command]

    def controllers(self) -> list[int]:
        """Process ids of Ray Train's controllers on this scene's nodes."""
        return [pid for pid, command in self.processes().items() if "TrainController" in command]

    def processes(self) -> dict[int, str]:
        """Process id -> command line of all running processes with the scene's mark, oldest first."""
        found = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if f"{MARK}={self.mark}".encode() in Path(entry.path, "environ").read_bytes().split(b"\0"):
                        fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                        command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                        found[int(entry.name)] = int(fields[19]), command
                except OSError:
                    continue
        return {pid: command for pid, (_, command) in sorted(found.items(), key=lambda item: item[1]) if command}

    def left_over(self, patience_s: float = 60) -> list[str]:
        """Training processes, placement groups and temporary folders that ended runs have left. Waits until there are none."""

        def found() -> list[str]:
            ours = ("RayTrainWorker", "TrainController", "StopFlag", "jobs.train")
            processes = [f"process {command}" for command in self.processes().values() if any(name in command for name in ours)]
            return [*processes, *self._placement_groups(), *sorted(temporary_folders() - self.folders_before)]

        deadline = time.monotonic() + patience_s
        while (left := found()) and time.monotonic() < deadline:
            time.sleep(1)
        return left

    def _placement_groups(self) -> list[str]:
        code = (
            "import json, ray; ray.init(log_to_driver=False); "
            "print(json.dumps({k: v['state'] for k, v in ray.util.placement_group_table().items()}))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | self.own | self._address(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        states = json.loads(done.stdout.splitlines()[-1])
        return [f"placement group {name} {state}" for name, state in states.items() if state != "REMOVED"]

    def store(self, config: Config) -> Store:
        """The folder of a run's checkpoints."""
        return open_store(f"{config.runs_url}/{config.run_key}", config.storage)

    def committed(self, config: Config) -> int:
        """Step of the newest checkpoint that has its manifest; 0 if there is none."""
        held = folders(self.store(config))
        return max((step for step, files in held.items() if checkpoint.MANIFEST in files), default=0)

    def weights(self, config: Config) -> "Weights":
        """The weights after the last step, verified."""
        return Weights.stored(self.store(config), checkpoint.folder_name(config.train.steps))


class Weights:
    """Final weights of a run, to be compared with those of another."""

    def __init__(self, sha256: str, found: checkpoint.Checkpoint) -> None:
        self.sha256, self.model, self.miou = sha256, found.model, float(found.progress["metrics"]["miou"])

    @classmethod
    def stored(cls, store: Store, name: str) -> "Weights":
        """Reads the weights of a checkpoint."""
        found = checkpoint.load(store, name)
        return cls(hashlib.sha256(store.read(f"{name}/{checkpoint.MODEL}")).hexdigest(), found)

    def difference(self, other: "Weights") -> float:
        """Largest difference of a weight; 0 only for the same bits."""
        if self.sha256 == other.sha256:
            return 0.0
        return max(float((a.double() - other.model[name].double()).abs().max()) for name, a in self.model.items())


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def temporary_folders() -> set[str]:
    """This project's folders among the machine's temporary files, without the metric log, which is meant to stay."""
    return {str(path) for path in Path(tempfile.gettempdir()).glob("ccnet-*") if not path.name.startswith("ccnet-metrics-")}


def kill(pid: int) -> None:
    """Ends a process by SIGKILL, if it still runs, and waits until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _alive(pid), 10)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _alive(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # empty for a zombie
    except OSError:
        return False


def wait_until(true: Callable[[], Any], timeout_s: float) -> Any:
    """Returns the value of `true()` once it is true. Raises AssertionError if that takes longer."""
    deadline = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"still false after {timeout_s:g} s"
        time.sleep(0.1)
    return found
