"""The restart policy in a real Ray Train controller: attempts that die, raise or are preempted, and what `fit` raises at last."""

import gc
import json
import logging
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
import ray.train
from ray.exceptions import RayActorError
from ray.train import Checkpoint, ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.state import list_actors

from pipeline.config.train import Faults
from pipeline.errors import RunFailed, SampleError, StorageError
from pipeline.fault_tolerance.failures import Kind, NodePreempted, WorkerFault, as_worker_fault, classify, root_cause
from pipeline.fault_tolerance.policy import RestartPolicy

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


def append(file: Path, event: dict[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(event) + "\n")


def run_config(folder: Path, **faults: Any) -> RunConfig:
    return RunConfig(
        name="run",
        storage_path=str(folder / "storage"),
        failure_config=FailureConfig(max_failures=-1),
        callbacks=[RestartPolicy(Faults(**faults), partial(append, folder / "events"))],
    )


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events").read_text().splitlines()]


class Controller(UserCallback):
    """Writes the process id of the controller into a file when a checkpoint is reported."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        self.file.write_text(str(os.getpid()))


def attempt(folder: Path) -> int:
    """Number of this attempt, from 0."""
    number = len(list(folder.glob("attempt-*")))
    (folder / f"attempt-{number}").touch()
    return number


def save(folder: Path, number: int) -> None:
    saved = folder / f"saved-{number}"
    saved.mkdir()
    (saved / "file").touch()
    ray.train.report({}, checkpoint=Checkpoint(str(saved)), checkpoint_dir_name=f"step-{number}")


def failing_often(settings: dict[str, Any]) -> None:
    with as_worker_fault():
        folder = Path(settings["folder"])
        number = attempt(folder)
        if number == 0:  # dies before Ray Train has seen it run
            os.kill(os.getpid(), signal.SIGKILL)
        if number in (1, 2, 3):
            save(folder, number)
        if number == 1:
            wait_for((folder / "controller").exists)
            os.kill(int((folder / "controller").read_text()), signal.SIGKILL)
            time.sleep(60)
        raise NodePreempted("node 12ab is about to be taken away") if number == 3 else ConnectionError("store away")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def quiet(local_ray: None) -> Iterator[None]:
    """Silences Ray's logs of failures, which would hide the output of the tests."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("ray.train").setLevel(logging.NOTSET)


def test_failures_with_checkpoints_in_between_are_survived_until_one_repeats(tmp_path: Path, quiet: None) -> None:
    config = run_config(tmp_path, max_failures=1)
    config.callbacks.append(Controller(tmp_path / "controller"))
    trainer = DataParallelTrainer(
        failing_often,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.2}),
        run_config=config,
    )
    # `fit` raises twice for what the policy cannot see: a worker that dies while Ray Train starts it, and a dead controller.
    for _ in range(2):
        with pytest.raises((ControllerError, RayActorError)) as caught:
            trainer.fit()
        if classify(caught.value).kind != Kind.INFRASTRUCTURE:
            break
        del caught
        gc.collect()  # as run_to_end does
    else:
        with pytest.raises(ControllerError) as caught:
            trainer.fit()
    # Earlier controllers no longer reserve their workers' CPUs; the last one is held by its handler of SIGINT.
    alive = [("class_name", "=", "TrainController"), ("state", "=", "ALIVE")]
    wait_for(lambda: len(list_actors(filters=alive)) <= 1)
    error = root_cause(caught.value)
    assert isinstance(error, RunFailed)
    assert "worker 0: ConnectionError: store away  [fault_tolerance/test_failures_in_ray.py line" in str(error)
    assert "not retried: the same as before" in str(error)
    kinds = [event["kind"] for event in recorded(tmp_path)]
    assert kinds[-4:] == ["infrastructure", "moved", "infrastructure", "infrastructure"]
    assert len(list(tmp_path.glob("attempt-*"))) == 6


def unreadable(error: Exception, rows: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    try:
        raise FileNotFoundError("a.png")
    except FileNotFoundError as missing:
        raise error from missing


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SampleError("s3://b/a.png: no such object (sample a): put it back"), Kind.DETERMINISTIC),
        (StorageError("s3://b: does not recover"), Kind.INFRASTRUCTURE),
    ],
)
def test_what_a_data_task_raises_is_classified_by_the_worker_that_waits_for_it(error: Exception, kind: Kind, quiet: None) -> None:
    rows = ray.data.range(4, override_num_blocks=1).map_batches(partial(unreadable, error), num_cpus=0.2)
    (shard,) = rows.streaming_split(1)
    with pytest.raises(WorkerFault) as caught, as_worker_fault():
        next(iter(shard.iter_batches(batch_size=4, batch_format="numpy")))
    fault = classify(pickle.loads(pickle.dumps(caught.value)))
    assert (fault.kind, fault.what) == (kind, f"{type(error).__name__}: {error}")
