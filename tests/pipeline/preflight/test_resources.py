"""Resources of a run with a fixed or an elastic number of workers, and the findings about that number."""

from typing import Any

import pytest

from ccnet import build_ccnet, freeze_batch_norm
from pipeline.config.load import override, parse
from pipeline.model.learner import network_arguments
from pipeline.preflight import cluster_checks
from pipeline.preflight.resources import checkpoint_bytes, cpus_needed, feed_bytes, workers_started


def config(**overrides: Any) -> Any:
    tree = {
        "name": "t",
        "storage": {"path": "s3://bucket"},
        "data": {"name": "g", "layout": "generated", "crop_size": 65, "scale": [1.0, 1.0]},
        "model": {"recurrence": 2, "backbone": "resnet18"},
        "train": {"workers": 2, "global_batch": 8},
    }
    return override(parse(tree), {key.replace("__", "."): value for key, value in overrides.items()})


def elastic(fewest: int, most: int, **overrides: Any) -> Any:
    return config(train__workers=[fewest, most], **overrides)


def test_a_run_needs_its_workers_and_two_data_tasks() -> None:
    assert cpus_needed(config(), 2) == 2 * 0.5 + 2 * 0.5
    assert cpus_needed(config(), 4) == 4 * 0.5 + 2 * 0.5
    assert cpus_needed(config(evaluate__background=True, train__cpus_per_worker=0.75), 2) == 3 * 0.75 + 2 * 0.5


def test_crops_on_the_way_follow_the_number_of_workers() -> None:
    """Cityscapes on 2 CPUs with tasks of a fourth of a CPU: 4 tasks fit with 2 workers, and 2 with 3.

    A block has one step of 4 crops with 2 workers, and two steps of 3 crops with 3.
    """
    large, crop = config(data__crop_size=769, data__cpus_per_task=0.25), 769 * 769 * 4
    assert feed_bytes(large, 2, workers=2) == (2 * 4 + 2 * 2) * 4 * crop
    assert feed_bytes(large, 2, workers=3) == (2 * 2 + 2 * 3) * 2 * 3 * crop


def test_a_short_run_needs_no_more_than_all_its_crops() -> None:
    assert feed_bytes(config(train__steps=3), 64, workers=2) == 3 * 8 * 65 * 65 * 4
    assert feed_bytes(config(train__steps=3), 64, workers=3) == 3 * 9 * 65 * 65 * 4  # one of the 9 is padding


def test_the_bytes_of_a_checkpoint_are_those_of_its_tensors() -> None:
    settings = config(loss__consistency={})
    net = build_ccnet(**network_arguments(settings, 3))
    state = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    assert checkpoint_bytes(settings, 3) == state + sum(4 * p.numel() for p in net.parameters())
    assert checkpoint_bytes(override(settings, {"train.momentum": 0}), 3) == state
    assert checkpoint_bytes(override(settings, {"train.momentum": 0, "train.ema_decay": 0.9}), 3) == 2 * state
    frozen = sum(4 * p.numel() for p in freeze_batch_norm(net.backbone).parameters() if not p.requires_grad)
    assert frozen > 0
    assert checkpoint_bytes(override(settings, {"train.freeze_norm": True}), 3) == checkpoint_bytes(settings, 3) - frozen


@pytest.mark.parametrize(
    ("cpus", "gpus", "started"),
    [(2, 0, 4), (1.5, 0, 3), (64, 0, 8), (64, 4, 4), (64, 16, 8), (64, 1, 8), (0.5, 0, 1)],
    ids=["all CPUs", "what fits", "the most", "a GPU each", "more GPUs than workers", "too few GPUs, so CPUs", "too few"],
)
def test_workers_start_until_the_cluster_is_full(cpus: float, gpus: float, started: int) -> None:
    assert workers_started(elastic(2, 8), cpus, gpus) == started


def test_a_batch_that_the_workers_cannot_share_evenly_is_doubted() -> None:
    assert cluster_checks.shares(config()) == []
    assert cluster_checks.shares(elastic(2, 8)) == []
    (found,) = cluster_checks.shares(config(train__workers=3))
    assert found.level == "warning"
    assert found.what == "train.global_batch = 8: 3 workers hold 2 or 3 images and wait for the larger share"
    assert found.fix == "train.global_batch=6 or 9, or a number of workers that divides 8"
    assert [f.what.split()[3] for f in cluster_checks.shares(elastic(3, 5))] == ["3", "5"]


def test_elastic_workers_need_the_cpus_of_the_fewest() -> None:
    assert cluster_checks.cpus(elastic(1, 4), 1.5) == []
    (found,) = cluster_checks.cpus(elastic(2, 4), 1.5)
    assert found.what == "train.workers = [2, 4]: 2 CPUs are needed (workers x 0.5 + 2 data tasks x 0.5), but the cluster has 1.5"
    assert found.fix == "train.cpus_per_worker=0.25"


def test_elastic_workers_that_would_starve_the_data_are_an_error() -> None:
    assert cluster_checks.crowding(config(), 2, 0) == []
    assert cluster_checks.crowding(elastic(1, 4), 64, 0) == []
    assert cluster_checks.crowding(elastic(1, 4), 2, 1) == []  # one GPU, one worker
    (found,) = cluster_checks.crowding(elastic(1, 4), 2, 0)
    assert found.level == "error"
    assert found.what == (
        "train.workers = [1, 4]: 4 of them start on a cluster of 2 CPUs and leave 0, but 1 must be left (2 data tasks x 0.5)"
    )
    assert found.fix == "train.workers=[1, 2]"
    assert cluster_checks.crowding(elastic(1, 2), 2, 0) == []
    assert cluster_checks.crowding(elastic(2, 4), 1, 0) == []  # too few for any: `cpus` reports that


def test_elastic_workers_use_the_gpus_from_the_fewest_on() -> None:
    assert cluster_checks.gpus(elastic(2, 8), 3) == []
    (found,) = cluster_checks.gpus(elastic(4, 8), 3)
    assert found.what == "train.workers = [4, 8]: the cluster has 3 GPUs, fewer than workers: all run on CPUs"
    assert found.fix == "train.workers=[3, 8]"


def test_a_feed_is_weighed_with_the_fewest_workers_and_with_those_that_start() -> None:
    """A block of a single worker holds all 8 crops of 769 x 769, so the feed is largest with one worker and 6 tasks."""
    large = elastic(1, 2, data__crop_size=769, data__cpus_per_task=0.25)
    needed = feed_bytes(large, 2, workers=1)
    assert needed > feed_bytes(large, 2, workers=2)
    cluster = {"CPU": 2.0, "object_store_memory": 2.0 * needed}
    assert cluster_checks.object_store(large, cluster) == []
    (found,) = cluster_checks.object_store(large, cluster | {"object_store_memory": 2.0 * needed - 2})
    assert "blocks of 18 MiB on the way to the workers need 253 MiB" in found.what


def test_a_validation_in_the_background_takes_the_cpus_of_one_more_worker() -> None:
    background = config(evaluate__background=True)
    assert cluster_checks.cpus(background, 2.5) == []
    (found,) = cluster_checks.cpus(background, 2)
    assert found.what == (
        "train.workers = 2: 2.5 CPUs are needed (workers x 0.5 + validation in the background 0.5 + 2 data tasks x 0.5), but "
        "the cluster has 2"
    )
    assert found.fix == "train.cpus_per_worker=0.33"
    assert cluster_checks.cpus(override(background, {"train.cpus_per_worker": 0.33}), 2) == []
    (found,) = cluster_checks.crowding(elastic(1, 4, evaluate__background=True), 3, 0)
    assert found.fix == "train.workers=[1, 3]"
    assert cluster_checks.crowding(elastic(1, 3, evaluate__background=True), 3, 0) == []


def test_a_validation_in_the_background_needs_a_gpu_that_no_worker_holds() -> None:
    assert cluster_checks.background_gpu(config(), 64, 2) == []
    two = config(evaluate__background=True)
    assert cluster_checks.background_gpu(two, 64, 0) == []  # all on CPUs
    assert cluster_checks.background_gpu(two, 64, 3) == []
    (found,) = cluster_checks.background_gpu(two, 64, 2)
    assert found.level == "warning"
    assert found.what == (
        "evaluate.background: validation needs a GPU besides those of the 2 workers, but the cluster has 2: it waits until "
        "training ends"
    )
    assert found.fix == "evaluate.background=false"
    (found,) = cluster_checks.background_gpu(elastic(2, 8, evaluate__background=True), 64, 4)
    assert found.fix == "train.workers=[2, 3], or evaluate.background=false"
    assert cluster_checks.background_gpu(elastic(2, 3, evaluate__background=True), 64, 4) == []
