"""The plan through Ray Data and Ray Train: groups of any size are fed the same global batches, shares of unequal size too."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.datasets import PlannedData, TrainingBatch, placeholder, training_batches
from pipeline.feed import Feed
from pipeline.prepare import prepare
from tests.own_data import STEPS, config, feed_of, make_source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\."),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),
]
GLOBAL_BATCH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    path = tmp_path_factory.mktemp("datasets")
    make_source(path / "source")
    prepare(config(path))
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, list[str]]:
    """Step -> hashes of the rows of its global batch."""
    feed = feed_of(folder, global_batch=GLOBAL_BATCH)
    crops = {step: feed.crops(step * GLOBAL_BATCH + np.arange(GLOBAL_BATCH)) for step in range(STEPS)}
    return {step: [digest(*row) for row in zip(image, label, strict=True)] for step, (image, label, _) in crops.items()}


def digest(image: Any, label: Any) -> str:
    """Of a crop uint8[h, w, 3] and its label uint8[h, w]."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes() + np.ascontiguousarray(label).tobytes()).hexdigest()


def rows_of(batch: TrainingBatch) -> list[str]:
    return [digest(i, t) for i, t in zip(batch.image.permute(0, 2, 3, 1).numpy(), batch.label.numpy(), strict=True)]


def fed(feed: Feed) -> dict[int, list[str]]:
    """What a group of workers gets, each in a thread of its own: Ray Data waits until all have asked."""
    data = PlannedData(lambda workers: feed._replace(workers=workers))
    parts = data.configure({"train": placeholder()}, feed.workers, None, None)
    batches: dict[int, list[str]] = {}

    def consume(rank: int) -> list[TrainingBatch]:
        return list(training_batches(parts[rank]["train"], feed, rank))

    with ThreadPoolExecutor(feed.workers) as pool:
        for mine in pool.map(consume, range(feed.workers)):
            for batch in mine:
                batches.setdefault(batch.step, []).extend(rows_of(batch))
    return batches


@pytest.mark.parametrize(("workers", "first_step"), [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (1, 4), (3, 5), (5, 8)])
def test_a_group_of_any_size_is_fed_the_global_batches_in_order(
    folder: Path, expected: dict[int, list[str]], workers: int, first_step: int
) -> None:
    found = fed(feed_of(folder, first_step, workers, global_batch=GLOBAL_BATCH))
    assert found == {step: rows for step, rows in expected.items() if step >= first_step}


STOPPED_AT = 4


def write_rows(settings: dict[str, Any]) -> None:
    """A worker that notes what it is fed; the first attempt fails after some steps."""
    folder, context = settings["folder"], ray.train.get_context()
    feed = settings["make"](context.get_world_size())
    first_attempt = feed.first_step == 0
    for batch in training_batches(ray.train.get_dataset_shard("train"), feed, context.get_world_rank()):
        if first_attempt and batch.step == STOPPED_AT:
            (folder / f"attempt-{context.get_world_rank()}").touch()
            raise RuntimeError("the first attempt ends here")
        (folder / f"{batch.step}-{context.get_world_rank()}").write_text("\n".join(rows_of(batch)))


class Make:
    """The feed of a run in a folder: from the start, or from the step where its first attempt ended."""

    def __init__(self, folder: Path, feed: Feed) -> None:
        self.folder, self.feed = folder, feed

    def __call__(self, workers: int) -> Feed:
        return self.feed._replace(workers=workers, first_step=STOPPED_AT if list(self.folder.glob("attempt-*")) else 0)


def test_ray_train_plans_the_data_anew_for_each_group_of_workers(
    folder: Path, expected: dict[int, list[str]], tmp_path: Path
) -> None:
    make = Make(tmp_path, feed_of(folder, workers=0, global_batch=GLOBAL_BATCH))
    DataParallelTrainer(
        write_rows,
        train_loop_config={"folder": tmp_path, "make": make},
        scaling_config=ScalingConfig(num_workers=3, resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(name="t", storage_path=str(tmp_path / "ray"), failure_config=FailureConfig(max_failures=1)),
        datasets={"train": placeholder()},
        dataset_config=PlannedData(make),
    ).fit()
    found = {
        step: [row for rank in range(3) for row in (tmp_path / f"{step}-{rank}").read_text().split("\n")] for step in range(STEPS)
    }
    assert found == expected
