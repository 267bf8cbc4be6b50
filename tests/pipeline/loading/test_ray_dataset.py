"""Batches through Ray Data and Ray Train: groups of any size get the same global batches, also with unequal shares."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.prepare import prepare
from pipeline.loading.batches import TrainingBatch, training_batches
from pipeline.loading.feed import Feed
from pipeline.loading.ray_dataset import ResumableDataConfig, placeholder
from tests.support.own_data import STEPS, config, feed_of, make_source

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
    """Hash of a crop uint8[h, w, 3] and its label uint8[h, w]."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes() + np.ascontiguousarray(label).tobytes()).hexdigest()


def rows_of(batch: TrainingBatch) -> list[str]:
    return [digest(i, t) for i, t in zip(batch.image.permute(0, 2, 3, 1).numpy(), batch.label.numpy(), strict=True)]


def fed(feed: Feed) -> dict[int, list[str]]:
    """Batches that a group of workers gets, each worker in a separate thread: Ray Data waits until all have requested one."""
    data = ResumableDataConfig(lambda workers: feed._replace(workers=workers))
    parts = data.configure({"train": placeholder()}, feed.workers, None, None)
    batches: dict[int, list[str]] = {}

    def consume(rank: int) -> list[TrainingBatch]:
        return list(training_batches(parts[rank]["train"], feed, rank))

    with ThreadPoolExecutor(feed.workers) as pool:
        for mine in pool.map(consume, range(feed.workers)):
            for batch in mine:
                batches.setdefault(batch.step, []).extend(rows_of(batch))
    return batches


@pytest.mark.parametrize(("workers", "first_step"), [(2, 0), (3, 5), (5, 8)])
def test_a_group_of_any_size_is_fed_the_global_batches_in_order(
    folder: Path, expected: dict[int, list[str]], workers: int, first_step: int
) -> None:
    found = fed(feed_of(folder, first_step, workers, global_batch=GLOBAL_BATCH))
    assert found == {step: rows for step, rows in expected.items() if step >= first_step}
