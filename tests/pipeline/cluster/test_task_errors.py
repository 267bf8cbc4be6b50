"""What reaches the caller when a Ray task fails: the task's own exception, never the text of its traceback."""

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from pipeline.cluster.task_errors import task_errors
from pipeline.config.config import Config
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


@pytest.mark.slow
def test_an_exception_of_preparation_arrives_as_it_was_raised(local_ray: None) -> None:
    config = Config.model_validate({
        "name": "t", "storage": {"path": "/nowhere"}, "data": {"name": "t", "layout": "generated", "crop_size": 33},
    })  # fmt: skip
    empty = prepare.PackTask(None, None, "shard", "train", (), 8, {})
    with pytest.raises(ValueError, match="need at least one array to stack") as caught:
        list(prepare._by_ray_data([empty], config))
    assert type(caught.value) is ValueError
