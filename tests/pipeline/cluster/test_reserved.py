"""What a dead controller of Ray Train has reserved is freed, and nothing else."""

import time
from pathlib import Path

import pytest
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from pipeline.cluster.fit import fit
from pipeline.cluster.reserved import NamedResources, free_resources

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


def states(*names: str) -> list[str]:
    found = {group["name"]: group["state"] for group in placement_group_table().values()}
    return [found[name] for name in names]


def test_only_the_resources_of_this_run_are_freed(local_ray: None) -> None:
    groups: list[PlacementGroup] = [placement_group([{"CPU": 0.25}], name=name) for name in ("ab12-x", "ab12-y", "ab123-z", "")]
    for group in groups:
        ray.get(group.ready())
    free_resources("ab12")
    deadline = time.monotonic() + 30
    while states("ab12-x", "ab12-y") != ["REMOVED", "REMOVED"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert states("ab123-z", "") == ["CREATED", "CREATED"]
    free_resources("ab12")  # nothing is left
    for group in groups[2:]:
        remove_placement_group(group)


def test_the_workers_of_a_trainer_reserve_under_its_run(local_ray: None, tmp_path: Path) -> None:
    def train() -> None:
        (tmp_path / "names").write_text("\n".join(group["name"] for group in placement_group_table().values()))

    callbacks = [NamedResources("run1")]
    config = RunConfig(storage_path=str(tmp_path), callbacks=callbacks)  # type: ignore[arg-type]
    fit(TorchTrainer(train, scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}), run_config=config))
    assert sum(name.startswith("run1-") for name in (tmp_path / "names").read_text().splitlines()) == 1
