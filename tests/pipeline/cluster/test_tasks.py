"""Images shared out over Ray tasks: each result once, whatever fails or dies."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.cluster import tasks
from pipeline.config.config import Config
from pipeline.config.load import override, parse
from pipeline.errors import ConfigError, SampleError, TaskDied

LIST_S = tasks.SECONDS_BETWEEN_LISTS


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two workers; nothing else of it is read."""
    return parse({
        "name": "t", "data": {"name": "g", "layout": "generated", "crop_size": 33}, "storage": {"path": str(tmp_path)},
        "model": {"backbone": "small", "recurrence": 2}, "train": {"workers": 2},
    })  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 8, [1, 2]], ids=str)
def test_shared_out_every_number_comes_back_once_and_progress_is_logged(
    config: Config, local_ray: None, num_workers: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def square(numbers: list[int], device: torch.device) -> Iterator[int]:
        return (number**2 for number in numbers)

    monkeypatch.setattr(tasks, "SECONDS_BETWEEN_LINES", 0.0)
    made = override(config, {"train.workers": num_workers, "train.cpus_per_worker": 0.25})
    with caplog.at_level(logging.INFO, logger="pipeline.cluster.tasks"):
        assert sorted(tasks.map_images(square, 5, made)) == [0, 1, 4, 9, 16]
    assert [message.split()[0] for message in caplog.messages] == ["1/5", "2/5", "3/5", "4/5", "5/5"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [ConfigError(["seed = x: must be a number"]), SampleError("a.png: corrupt"), ValueError("bug")])
def test_an_exception_of_a_task_arrives_as_it_was_raised(config: Config, local_ray: None, error: Exception) -> None:
    def broken(numbers: list[int], device: torch.device) -> Iterator[int]:
        yield from numbers[:1]
        raise error

    with pytest.raises(type(error)) as caught:
        list(tasks.map_images(broken, 5, config))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)  # for Ray's own exception it is the traceback


@pytest.mark.slow
def test_a_task_whose_process_died_computes_only_what_had_not_arrived(config: Config, local_ray: None, tmp_path: Path) -> None:
    arrived, died = tmp_path / "arrived", tmp_path / "died"

    def killed_once(numbers: list[int], device: torch.device) -> Iterator[tuple[int, int]]:
        since = time.monotonic()
        for number in numbers:
            while not died.exists() and not (arrived.exists() if number else time.monotonic() > since + LIST_S):
                time.sleep(0.01)
            if number == 3 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield number, len(numbers)

    found = []
    for result in tasks.map_images(killed_once, 5, override(config, {"train.workers": 1, "train.cpus_per_worker": 0.25})):
        found.append(result)
        arrived.touch()
    assert [number for number, _ in found] == [0, 1, 2, 3, 4]
    assert died.exists()
    assert found[0][1] == 5
    assert found[-1][1] < 5, "the first result had arrived"


@pytest.mark.slow
def test_a_task_whose_process_dies_is_one_sentence_with_the_fix(config: Config, local_ray: None) -> None:
    def killed(numbers: list[int], device: torch.device) -> Iterator[int]:
        yield from numbers[:1]
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TaskDied, match=r"^a Ray task died \(.*\): run the command again.*lower evaluate\.scale") as caught:
        list(tasks.map_images(killed, 5, config))
    assert "\n" not in str(caught.value)
