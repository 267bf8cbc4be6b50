"""Measures the steps of a training while MLflow hangs and while it is away: `python -m tests.support.mlflow_away [SECONDS]`.

One training of a small network logs each step. For SECONDS each (60 by default), its MLflow server works, hangs (SIGSTOP), works,
is killed and works. The time of a step is the difference of two points' times, which the training wrote.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from tests.support.mlflow_server import MlflowServer

WORDS = [
    "jobs/configs/demo.yaml", "data.name=away", "data.crop_size=65", "data.generated={num_train: 64, num_val: 2, size: 65}",
    "train.workers=1", "train.global_batch=2", "train.steps=100000", "train.validate_every=100000", "train.log_every=1",
    "tracking.register_as=null",
]  # fmt: skip
START_S = 60.0
"""Seconds before the first step and after the last one, for which the budget leaves room."""


def main(seconds: float = 60.0) -> None:
    """Prints, for each time, the median and the longest of its steps; ends with an error unless each point arrived once."""
    with tempfile.TemporaryDirectory() as name, MlflowServer(Path(name)) as server:
        budget = (5 * seconds + START_S) / 3600
        words = [f"storage.path={name}/store", f"tracking.uri={server.uri}", f"stop.hours={budget:.5f}"]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        training = subprocess.Popen([sys.executable, "-m", "jobs.train", *WORDS, *words], env=environment)
        client = MlflowClient(server.uri)
        while not (run := _run(client)) or "train/loss" not in run.data.metrics:
            assert training.poll() is None
            time.sleep(0.2)
        times = []
        for state in ("works", "hangs", "works again", "is away", "is back"):
            if state in ("hangs", "works again"):
                assert server.process
                os.killpg(server.process.pid, signal.SIGSTOP if state == "hangs" else signal.SIGCONT)
            elif state == "is away":
                server.stop()
            elif state == "is back":
                server.start()
            began = time.time()
            time.sleep(seconds)
            times.append((state, 1000 * began, 1000 * time.time()))
        assert training.wait() == 0
        points = sorted(client.get_metric_history(run.info.run_id, "train/loss"), key=lambda point: point.step)
    assert [point.step for point in points] == list(range(1, len(points) + 1)), "each point once"
    for state, start, end in times:
        took = [b.timestamp - a.timestamp for a, b in pairwise(points) if start <= a.timestamp and b.timestamp <= end]
        print(f"MLflow {state}: {len(took)} steps, median {statistics.median(took):.0f} ms, longest {max(took)} ms")
    print(f"{len(points)} points, each once")


def _run(client: MlflowClient) -> Run | None:
    found = [each for each in client.search_experiments() if each.experiment_id != "0"]
    runs = client.search_runs([each.experiment_id for each in found]) if found else []
    return runs[0] if runs else None


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
