"""The short chaos suite: a run that is struck again and again ends as the undisturbed one. `make chaos` does it all."""

import random
import time
from collections.abc import Iterator

import pytest

from tests.chaos.faults import FAULTS, Stage, kill_driver, kill_node, kill_worker
from tests.chaos.run import recovery
from tests.chaos.scene import Scene, Weights

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Scene(tmp_path_factory.mktemp("chaos")) as made:
        yield made
    assert made.processes() == {}


@pytest.fixture(scope="module")
def undisturbed(scene: Scene) -> Weights:
    """Of the run that nothing happened to."""
    scene.start("name=calm").succeed()
    return scene.weights(scene.config("name=calm"))


def test_a_worker_a_node_and_the_driver_killed_in_one_run(scene: Scene, undisturbed: Weights) -> None:
    drawn, config = random.Random(1), scene.config("name=killed")
    run = scene.start("name=killed")
    for number, strike in enumerate((kill_worker, kill_node, kill_driver)):
        run.wait_for_step(5 * number + drawn.randint(6, 8))
        committed, at = scene.committed(config), time.monotonic()
        after = strike(Stage(scene, run, lambda: scene.start("name=killed"), drawn, config))
        found = recovery(run, after, at)
        assert found.resumed_at >= committed > 0
        assert found.total_s < 60
        run = after
    run.succeed()
    assert scene.weights(config).difference(undisturbed) == 0
    assert scene.left_over() == []


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
