"""How many trials run at a time, the settings of each, and what is asked of Tune."""

from typing import Any

import pytest

from pipeline.tuning.engine import Need, concurrent_trials, shared_by
from pipeline.tuning.trials import trial_config
from tests.pipeline.preflight.test_resources import config, elastic


def need(settings: Any, on_gpus: bool = False) -> Need:
    return Need.of(settings, on_gpus)


def test_a_trial_of_an_elastic_configuration_has_the_fewest_workers() -> None:
    trial = trial_config(elastic(1, 4), {"train.learning_rate": 0.05})
    assert (trial.train.workers, trial.train.learning_rate) == (1, 0.05)
    assert trial.run_key == trial_config(config(), {"train.learning_rate": 0.05}).run_key  # the number of workers is not in it
    assert trial_config(config(train__workers=0), {}).train.workers == 1  # a trial has a process of its own


def test_a_trial_is_validated_in_place() -> None:
    assert not trial_config(config(evaluate__background=True), {}).evaluate.background


@pytest.mark.parametrize(
    ("settings", "on_gpus", "resources", "trials"),
    [
        (elastic(1, 8), False, {"CPU": 16}, 16),  # each trains in its own process, on one CPU
        (elastic(1, 8), True, {"CPU": 16, "GPU": 4}, 4),
        (config(), False, {"CPU": 2}, 1),
        (config(), False, {"CPU": 16}, 8),
        (config(), True, {"CPU": 16, "GPU": 4}, 2),
        (config(), False, {"CPU": 16, "GPU": 1}, 8),  # too few GPUs for one trial: all run on CPUs
        (config(), False, {"CPU": 1}, 1),
        (config(tune__concurrent=3), False, {"CPU": 16}, 3),
    ],
)
def test_trials_at_a_time_follow_cpus_and_gpus(settings: Any, on_gpus: bool, resources: dict[str, float], trials: int) -> None:
    assert concurrent_trials(settings, need(settings, on_gpus), resources) == trials


def test_no_trial_starts_without_room_for_its_data() -> None:
    two = need(config())
    assert (two.places({"CPU": 1.9}), two.places({"CPU": 2.0}), two.places({})) == (0, 1, 0)
    assert need(config(), on_gpus=True).places({"CPU": 8, "GPU": 1}) == 0


def node(cpus: float, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus} if cpus else {}}


@pytest.mark.parametrize(
    ("settings", "places", "nodes", "shared"),
    [
        (elastic(1, 8), 2, [node(2)], (2, 1)),
        (elastic(1, 8), 1, [node(2)], (1, 2)),
        (elastic(1, 8), 3, [node(8), node(4), node(0), node(16, alive=False)], (2, 2)),  # the smallest node decides
        (config(), 1, [node(16)], (1, 8)),  # two workers
        (config(), 1, [node(16), node(16)], (1, 16)),  # one on each node
        (config(), 9, [node(2)], (9, 1)),
    ],
)
def test_the_trials_of_a_node_share_its_cores(settings: Any, places: int, nodes: list[Any], shared: tuple[int, int]) -> None:
    assert shared_by(places, need(settings), nodes) == shared
