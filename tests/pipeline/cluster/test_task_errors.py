"""What reaches the caller when a Ray task fails: the task's own exception, never the text of its traceback."""

import pickle

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from pipeline.cluster.task_errors import task_errors
from pipeline.data import prepare
from pipeline.errors import ConfigError, TaskDied


def test_the_exception_of_a_task_replaces_rays() -> None:
    own = ConfigError(["seed = x: must be a number"])
    for wrapped in (RayTaskError("f", "traceback", own), RayTaskError("f", "traceback", own).as_instanceof_cause()):
        with pytest.raises(ConfigError) as caught, task_errors("lower x"):
            raise wrapped
        assert caught.value is own


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("death", "sentence"),
    [
        (
            OutOfMemoryError("Task was killed ...\nmany lines"),
            "a Ray task was killed because its node ran out of memory: lower x",
        ),
        (
            WorkerCrashedError(),
            "a Ray task died (The worker died unexpectedly while executing this task. Check python-core-worker-*.log files for "
            "more information.): run the command again; if it dies again, its node may lack memory: lower x",
        ),
    ],
)
def test_a_death_is_one_sentence_with_the_fix(death: Exception, sentence: str, wrapped: bool) -> None:
    with pytest.raises(TaskDied) as caught, task_errors("lower x"):
        raise RayTaskError("f", "traceback", death) if wrapped else death
    assert str(caught.value) == sentence


def test_an_exception_of_preparation_travels_as_a_value() -> None:
    empty = prepare.PackTask(None, None, "shard", "train", (), 8, {})
    done = pickle.loads(prepare._task({"number": 3, "task": pickle.dumps(empty)})["done"])  # type: ignore[arg-type]
    assert isinstance(done, ValueError)
    assert str(done) == "need at least one array to stack"
