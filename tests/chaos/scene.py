"""A training to be disturbed: two Ray nodes, an S3 server behind a proxy and an MLflow server on this machine, all real.

    with Scene(folder) as scene:
        run = scene.start("name=killed")
        run.wait_for_step(7)
        os.kill(run.worker(0), signal.SIGKILL)
        run.finish()

Every process belongs to this scene and is ended by its id; nothing is found by name beyond the scene's own nodes.
"""

import hashlib
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from pipeline import checkpoint
from pipeline.config import Config
from pipeline.loading import load
from pipeline.storage import Store, open_store
from tests.faulty_store import FaultyStore
from tests.mlflow_server import MlflowServer

ROOT = Path(__file__).parents[2]
CONFIG = "jobs/configs/demo.yaml"
STEP = re.compile(r"step (\d+)/\d+  loss")
RESUMED = re.compile(r"resumed at step (\d+) from \S+ \(loaded in ([\d.]+) s\)")
FIRST_BATCH = re.compile(r"first batch after ([\d.]+) s")
MARK = "CCNET_CHAOS_MARK"
NODE_CPUS = 1
OBJECT_STORE_BYTES = 200 * 2**20


class Line(NamedTuple):
    """A line of a run's log and when it came, in seconds of the monotonic clock."""

    at: float
    text: str


class Run:
    """A driver at work: `python -m jobs.train`, its log, and the processes of its workers."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.lines: list[Line] = []
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for text in self.process.stdout:
            with self._changed:
                self.lines.append(Line(time.monotonic(), text.rstrip()))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(line.text for line in self.lines)

    def wait_for(self, pattern: str, *, after: float = 0.0, timeout_s: float = 240) -> Line:
        """The first line that matches and came after that time. AssertionError with the log when none comes."""
        sought, deadline = re.compile(pattern), time.monotonic() + timeout_s
        seen = 0
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    if line.at > after and sought.search(line.text):
                        return line
                seen = len(self.lines)
                ended = not self._reader.is_alive()
                if ended or not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"no line like {pattern!r} within {timeout_s:g} s:\n{self.log[-6000:]}")

    def wait_for_step(self, step: int, **options: float) -> Line:
        return self.wait_for(rf"step {step}/\d+  loss", **options)

    def last_step(self, before: float) -> int:
        """The last step whose line came before that time."""
        return max((int(m[1]) for line in self.lines if line.at <= before and (m := STEP.search(line.text))), default=0)

    def kill(self) -> None:
        """kill -9 of the driver."""
        self.process.kill()
        self.process.wait()

    def finish(self, timeout_s: float = 600) -> int:
        """Waits for the end; the exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code


class Recovery(NamedTuple):
    """From a fault to the first step done after it, in seconds, and where the time went."""

    total_s: float
    load_s: float
    first_batch_s: float
    step_before: int
    """Last step done before the fault."""
    resumed_at: int

    @property
    def start_s(self) -> float:
        """Noticing the fault, ending the old workers and starting the new ones; the first step."""
        return self.total_s - self.load_s - self.first_batch_s


def recovery(before: Run, after: Run, fault_at: float) -> Recovery:
    """What the log tells of a fault at that time; `after` is the run that went on, often the same one."""
    resumed = after.wait_for(RESUMED.pattern, after=fault_at)
    batch = after.wait_for(FIRST_BATCH.pattern, after=fault_at)
    match, fed = RESUMED.search(resumed.text), FIRST_BATCH.search(batch.text)
    assert match
    assert fed
    step = int(match[1])
    done = after.wait_for_step(step + 1, after=resumed.at)
    return Recovery(done.at - fault_at, float(match[2]), float(fed[1]), before.last_step(fault_at), step)


class Scene:
    """Two nodes of one CPU each, of which the second can be taken away; `folder` holds what the servers keep."""

    def __init__(self, folder: Path, overrides: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.mark = secrets.token_hex(8)
        self.bucket = f"chaos-{self.mark[:8]}"
        self.overrides = overrides
        self.runs: list[Run] = []
        self.mlflow = MlflowServer(folder)
        self.s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.cluster: Cluster | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ[MARK] = self.mark  # every process of the cluster inherits it
        self.mlflow.start()
        self.s3.start()
        self.proxy = FaultyStore("http://{}:{}".format(*self.s3.get_host_and_port()))
        self.proxy.__enter__()
        self.environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "MLFLOW_TRACKING_URI": self.mlflow.uri,
            "RAY_AUTH_MODE": "disabled",
            "PYTHONUNBUFFERED": "1",
        }
        os.environ.update({k: v for k, v in self.environment.items() if k.startswith(("AWS_", "RAY_AUTH"))})
        Store(f"s3://{self.bucket}", self.proxy.endpoint)._fs().mkdir(self.bucket)
        self.start_cluster()
        self.command("prepare")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for run in self.runs:
            if run.process.poll() is None:
                run.kill()
        self.stop_cluster()
        self.proxy.__exit__(kind, error, trace)
        self.s3.stop()
        self.mlflow.stop()
        del os.environ[MARK]

    def start_cluster(self) -> None:
        """The head, which holds the driver's controller and one CPU, and a second node with another."""
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": NODE_CPUS, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": True},
        )
        self.second = self.add_node()

    def add_node(self) -> "object":
        """Another node of one CPU."""
        assert self.cluster
        return self.cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=OBJECT_STORE_BYTES)

    def kill_node(self, node: object) -> None:
        """kill -9 of all processes of a node."""
        assert self.cluster
        self.cluster.remove_node(node, allow_graceful=False)

    def stop_cluster(self) -> None:
        if self.cluster:
            self.cluster.shutdown()
            self.cluster = None

    def config(self, *overrides: str) -> Config:
        """The configuration of a run in this scene."""
        return load(ROOT / CONFIG, [f"storage.path=s3://{self.bucket}", *self.overrides, *overrides])

    def start(self, *overrides: str) -> Run:
        """Starts a training, or goes on with it."""
        assert self.cluster
        words = [sys.executable, "-m", "jobs.train", CONFIG, f"storage.path=s3://{self.bucket}", *self.overrides, *overrides]
        run = Run(words, self.environment | {"RAY_ADDRESS": str(self.cluster.address)})
        self.runs.append(run)
        return run

    def command(self, verb: str, *overrides: str) -> str:
        """Runs another verb to its end; its output."""
        assert self.cluster
        words = [sys.executable, "-m", f"jobs.{verb}", CONFIG, f"storage.path=s3://{self.bucket}", *self.overrides, *overrides]
        environment = self.environment | {"RAY_ADDRESS": str(self.cluster.address)}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def workers(self) -> list[int]:
        """Process ids of the training workers on this scene's nodes, oldest first."""
        return self._named("RayTrainWorker")

    def controllers(self) -> list[int]:
        """Process ids of Ray Train's controllers on this scene's nodes."""
        return self._named("TrainController")

    def _named(self, name: str) -> list[int]:
        """Ray names a worker's process after its actor."""
        return [pid for pid, command in self.processes().items() if name in command]

    def processes(self) -> dict[int, str]:
        """Process id -> command line of all that carry the scene's mark and have not ended, oldest first."""
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

    def weights(self, config: Config) -> str:
        """sha256 of the weights after the last step, verified."""
        store = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
        name = checkpoint.folder_name(config.train.steps)
        checkpoint.load(store, name)
        return hashlib.sha256(store.read(f"{name}/{checkpoint.MODEL}")).hexdigest()


def kill_worker(scene: Scene, rank: int) -> float:
    """kill -9 of a training worker; when."""
    os.kill(scene.workers()[rank], signal.SIGKILL)
    return time.monotonic()
