"""The origin of a result: commit, versions and devices of this process, its command and its user."""

import getpass
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.base import JOB_MARK

PACKAGES = {"torch": "torch", "ray": "ray", "mlflow": "mlflow", "opencv": "opencv-python", "numpy": "numpy"}
CODE = ("commit", "python", *PACKAGES)
"""What of an environment can change the trained model."""
COMMIT, USER = "CCNET_COMMIT", "CCNET_USER"
"""Variables of a submitted job: the commit of its code, which has no .git there, and who submitted it."""


def environment() -> dict[str, str]:
    """Commit, versions and devices as text."""
    import torch  # for the names of GPUs; slow to import

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "commit": os.environ.get(COMMIT) or describe_commit(),
        "python": platform.python_version(),
        **{name: _version(package) for name, package in PACKAGES.items()},
        "devices": ", ".join(f"{gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(gpus)) or "cpu",
        "cpus": str(os.cpu_count()),
    }


def source() -> dict[str, str]:
    """The command, the user and the commit of this process, as the tags of which MLflow's pages are made."""
    script, commit = Path(sys.argv[0]), (os.environ.get(COMMIT) or describe_commit()).removesuffix("-dirty")
    tags = {
        "mlflow.source.name": f"jobs/{script.name}" if script.parent.name == "jobs" else script.name,
        "mlflow.source.type": "JOB" if os.environ.get(JOB_MARK) else "LOCAL",
        "mlflow.user": os.environ.get(USER) or user(),
    }
    return tags | ({} if commit == "unknown" else {"mlflow.source.git.commit": commit})


def user() -> str:
    """The name of the user; `unknown` if the system has none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def other_code(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """`torch was 2.13.0 and is 2.14.0` for the commit and each version that differs between two environments.

    What only one of them names is not compared: older checkpoints recorded nothing.
    """
    return [
        f"{name} was {before[name]} and is {now[name]}"
        for name in CODE
        if name in before and name in now and before[name] != now[name]
    ]


def describe_commit() -> str:
    """The commit of this folder, with `-dirty` appended if files differ from it; `unknown` outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git("status", "--porcelain") else commit or "unknown"


def _git(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository or no commit yet
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
