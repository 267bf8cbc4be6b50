"""A cluster of several hosts: object store and MLflow, a Ray head, nodes, and a computer that submits."""

import secrets
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from infra.services import JOB_STOP_S
from tests.cluster.bed import Bed, Host

S3_PORT, MLFLOW_PORT, GCS_PORT, DASHBOARD_PORT = 9000, 5000, 6379, 8265
BUCKET = "ccnet"
OBJECT_STORE = 200 * 2**20
CONFIG = "jobs/configs/demo.yaml"
TINY = (
    f"storage.path=s3://{BUCKET}", "data.name=tiny", "data.crop_size=49", "data.generated={num_train: 32, num_val: 4, size: 49}",
    "model.backbone=resnet18", "model.gamma_init=0", "train.global_batch=4", "train.warmup_steps=0", "train.learning_rate=0.01",
    "train.log_every=1", "train.validate_every=20", "faults.look_every=2", "tracking.register_as=null",
    "train.workers=2", "train.cpus_per_worker=2", "data.cpus_per_task=0.5",  # a node holds one worker, never two
)  # fmt: skip
"""Settings of a small training whose two workers are on two nodes."""


class Cluster:
    """`with Cluster(folder) as cluster:` has `services`, `head`, two `nodes` and `laptop`; all of Ray requires the token."""

    def __init__(self, folder: Path) -> None:
        self.bed, self.token = Bed(folder), secrets.token_hex(32)
        self.nodes: list[Host] = []

    def __enter__(self) -> Self:
        self.bed.__enter__()
        try:
            self._start()
        except BaseException:
            self.bed.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.bed.__exit__()

    def _start(self) -> None:
        self.services, self.head = self.bed.host("services"), self.bed.host("head")
        self.nodes = [self.bed.host(f"node{number}") for number in (1, 2)]
        self.laptop = self.bed.host("laptop")
        address = self.services.address
        self.services.python("-m", "moto.server", "--host", "0.0.0.0", "--port", str(S3_PORT), log="s3.log")
        self.services.python(
            "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", str(MLFLOW_PORT), "--workers", "1",
            "--allowed-hosts", f"{address}:{MLFLOW_PORT}", "--backend-store-uri", f"sqlite:///{self.services.folder}/mlflow.db",
            "--artifacts-destination", f"{self.services.folder}/artifacts",
            environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}, log="mlflow.log",
        )  # fmt: skip
        self.ray(
            self.head,
            "--head",
            f"--port={GCS_PORT}",
            "--num-cpus=0",
            "--dashboard-host=0.0.0.0",
            f"--dashboard-port={DASHBOARD_PORT}",
        )
        self.wait_for("the job server", lambda: self.ask(self.laptop, "-m", "jobs.submit", "list")[0] == 0)
        for node in self.nodes:
            self.join(node)
        bucket = (
            f"import urllib.request as u; u.urlopen(u.Request('http://{address}:{S3_PORT}/{BUCKET}', method='PUT'), timeout=9)"
        )
        self.wait_for("the store", lambda: self.ask(self.laptop, "-c", bucket)[0] == 0)
        health = f"import urllib.request as u; u.urlopen('http://{address}:{MLFLOW_PORT}/health', timeout=9)"
        self.wait_for("MLflow", lambda: self.ask(self.laptop, "-c", health)[0] == 0)

    def ray(self, host: Host, *options: str) -> None:
        """Starts Ray on a host; it ends with the host."""
        host.start("ray", "start", "--block", "--disable-usage-stats", f"--node-ip-address={host.address}",
                   f"--object-store-memory={OBJECT_STORE}", *options, environment=self.environment, log="ray.log")  # fmt: skip

    def join(self, node: Host) -> None:
        """Adds a node with three CPUs."""
        self.ray(node, f"--address={self.head.address}:{GCS_PORT}", "--num-cpus=3")

    @property
    def environment(self) -> dict[str, str]:
        """What nodes and jobs need; the laptop too."""
        services = self.services.address
        return {
            "AWS_ENDPOINT_URL": f"http://{services}:{S3_PORT}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_TRACKING_URI": f"http://{services}:{MLFLOW_PORT}",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_S),
            "RAY_API_SERVER_ADDRESS": f"http://{self.head.address}:{DASHBOARD_PORT}",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        }  # fmt: skip

    def submit(self, verb: str, *overrides: str, log: str | None = None) -> subprocess.Popen[str]:
        """Submits a verb from the laptop and follows it."""
        return self.laptop.python(*self.words(verb, *overrides), environment=self.environment, log=log)

    @staticmethod
    def words(verb: str, *overrides: str) -> tuple[str, ...]:
        """Python's arguments that submit a verb."""
        return ("-m", "jobs.submit", verb, CONFIG, *TINY, *overrides)

    def ask(self, host: Host, *words: str) -> tuple[int, str]:
        """Runs Python on a host; its exit code and its output."""
        process = host.python(*words, environment=self.environment)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def wait_for(self, what: str, there: Callable[[], bool], seconds: float = 120) -> None:
        """Waits for a condition. Raises TimeoutError with the ends of all logs."""
        deadline = time.monotonic() + seconds
        while not there():
            if time.monotonic() > deadline:
                logs = [f"{log}:\n{log.read_text(errors='replace')[-2000:]}" for log in self.bed.folder.glob("*/*.log")]
                raise TimeoutError("\n".join([f"{what}: not there after {seconds:g} s", *logs]))
            time.sleep(0.3)
