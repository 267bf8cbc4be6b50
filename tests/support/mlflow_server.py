"""A real MLflow server on a free loopback port, in its own process group; it can be stopped and started again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Self

from infra.processes import free_port


class MlflowServer:
    """`with MlflowServer(folder) as server:` keeps its SQLite file and artifacts in `folder`; a restart keeps `.uri`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port(0)
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True)
        for _ in range(1800):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise TimeoutError(f"no MLflow server after 180 s: {(self.folder / 'server.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Ends the whole process group, because the server's worker processes would outlive their parent."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
