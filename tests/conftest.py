"""Shapes and dtypes of ccnet's signatures are checked in every test; one real stack serves all tests that need one."""

import os
import subprocess
import sys
from collections.abc import Iterator

import jaxtyping
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # for ccnet.kernels; triton reads it when it is imported, as by ccnet
jaxtyping.install_import_hook("ccnet", "beartype.beartype")  # must run before ccnet is first imported

from infra.environment import environment  # noqa: E402


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a running stack; put them into the environment of a new process, for Ray reads some at its import."""
    root = tmp_path_factory.mktemp("stack")
    command = [sys.executable, "-m", "infra.stack"]
    try:
        subprocess.run([*command, "up", "--root", str(root)], check=True)
        yield environment(root)
    finally:
        subprocess.run([*command, "down", "--root", str(root)], check=True)
