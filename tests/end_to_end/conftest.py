"""The tiny training's command, its prepared data and the tracking server of the session's stack."""

import os
import subprocess

import pytest
from mlflow import MlflowClient

from tests.support.tiny_job import ROOT, Command, words


@pytest.fixture(scope="session")
def command(stack: dict[str, str]) -> Command:
    """command("train", "key=value", ...): runs the verb on the tiny demo and returns the finished process."""

    def run(verb: str, *overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | stack | variables
        return subprocess.run(words(verb, *overrides), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def client(stack: dict[str, str]) -> MlflowClient:
    return MlflowClient(stack["MLFLOW_TRACKING_URI"])


@pytest.fixture(scope="session")
def prepared(command: Command) -> str:
    """The output of jobs.prepare."""
    done = command("prepare")
    assert done.returncode == 0, done.stderr
    return done.stdout
