"""What the local stack consists of: the command, the environment and the health check of each of its three services."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import ENVIRONMENT, LOOPBACK, OBJECT_STORE_BYTES, SINGLE_NODE

HOST = "127.0.0.1"
BUCKET = "ccnet"
MINISTACK = "ministack==1.5.33"
"""Its botocore pin conflicts with aiobotocore's, so it gets a separate environment."""
S3_VENV = "CCNET_S3_VENV"
"""Environment variable with the folder of that environment, so that several stacks can share it."""


@dataclass(frozen=True)
class Ports:
    """The ports of one stack, all on loopback."""

    s3: int
    mlflow: int
    gcs: int
    dashboard: int
    client: int
    """Ray's remote driver service; unused here, but `ray start` always starts it."""


JOB_STOP_S = 60
"""Seconds from SIGTERM to SIGKILL when a job is stopped. Ray's default of 3 is too short for a checkpoint."""
PREFERRED = Ports(s3=9000, mlflow=5000, gcs=6379, dashboard=8265, client=10001)


@dataclass(frozen=True)
class Secrets:
    access_key: str
    secret_key: str
    token: str


@dataclass(frozen=True)
class Service:
    """One service of the stack. `healthy` returns within 5 seconds and does not raise."""

    name: str
    address: str
    command: list[str]
    environment: dict[str, str]
    healthy: Callable[[], bool]


def client_environment(root: Path, ports: Ports, secrets: Secrets) -> dict[str, str]:
    """The variables with which a driver, a job or a command reaches the stack: the content of `root/env`."""
    return {
        **ENVIRONMENT,
        **LOOPBACK,
        **SINGLE_NODE,
        "AWS_ENDPOINT_URL": f"http://{HOST}:{ports.s3}",
        "AWS_ACCESS_KEY_ID": secrets.access_key,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports.mlflow}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_ADDRESS": f"{HOST}:{ports.gcs}",
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{ports.dashboard}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(root / "ray.token"),
    }


def services(root: Path, ports: Ports, secrets: Secrets, temporary: Path) -> list[Service]:
    """The store, the tracking server and the Ray head, in the order in which they become ready."""
    return [_s3(root, ports, secrets), _mlflow(root, ports), _ray(root, ports, secrets, temporary)]


def s3_venv(root: Path) -> Path:
    """Where the store is installed: CCNET_S3_VENV, else `.venv-s3` next to this Python's environment, or next to the root."""
    if os.environ.get(S3_VENV):
        return Path(os.environ[S3_VENV]).absolute()
    home = Path(sys.prefix) if sys.prefix != sys.base_prefix else root
    return home.parent / ".venv-s3"


def install_s3(root: Path) -> None:
    """Installs the store if it is missing, and prints that. Raises CalledProcessError."""
    venv = s3_venv(root)
    if (venv / "bin" / "ministack").exists():
        return
    print(f"installing {MINISTACK} into {venv}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, MINISTACK], check=True)


def _s3(root: Path, ports: Ports, secrets: Secrets) -> Service:
    url = f"http://{HOST}:{ports.s3}"
    data = root / "s3"
    environment = {
        "BIND_HOST": HOST,  # its default is every interface
        "GATEWAY_PORT": str(ports.s3),
        "SERVICES": "s3",
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(data),
        "AWS_ACCESS_KEY_ID": secrets.access_key,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_key,
        "TMPDIR": str(root),  # for its pid file
    }
    command = [str(s3_venv(root) / "bin" / "ministack")]
    return Service("s3", url, command, os.environ | environment, lambda: answers(f"{url}/_ministack/health"))


def _mlflow(root: Path, ports: Ports) -> Service:
    url = f"http://{HOST}:{ports.mlflow}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports.mlflow), "--workers", "1"]
    backend = os.environ.get("MLFLOW_BACKEND_STORE_URI") or f"sqlite:///{root / 'mlflow.db'}"
    command += ["--backend-store-uri", backend, "--artifacts-destination", str(root / "artifacts")]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | _path()
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return Service("mlflow", url, command, environment, lambda: answers(f"{url}/health"))


def _ray(root: Path, ports: Ports, secrets: Secrets, temporary: Path) -> Service:
    url = f"http://{HOST}:{ports.dashboard}"
    options = {
        "node-ip-address": HOST,
        "port": ports.gcs,
        "dashboard-host": HOST,
        "dashboard-port": ports.dashboard,
        "include-dashboard": "true",
        "ray-client-server-port": ports.client,
        # 0 means any free port: the fixed defaults collide if two clusters share a machine
        "dashboard-agent-listen-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": temporary,
        "log-color": "false",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{key}={value}" for key, value in options.items()]
    environment = os.environ | client_environment(root, ports, secrets) | _path()
    environment |= {"RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_S)}
    header = {"Authorization": f"Bearer {secrets.token}"}
    return Service("ray", url, command, environment, lambda: answers(f"{url}/api/jobs/", header))


def _path() -> dict[str, str]:
    """PATH with this Python first, so that `python` in a job is this one."""
    return {"PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])}


def make_bucket(store: str) -> None:
    """Creates the bucket `ccnet` if it is missing. Requests are unsigned: this store checks no signature. Raises OSError."""
    if not answers(f"{store}/{BUCKET}", method="HEAD") and not answers(f"{store}/{BUCKET}", method="PUT"):
        raise OSError(f"{store} answers, but bucket {BUCKET} cannot be created: see s3.log")


def answers(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> bool:
    """Whether `url` answers 200 within 5 seconds."""
    # without this, HTTP_PROXY would send loopback requests to a proxy
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers or {}, method=method), timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
