"""The short chaos suite: a run that is struck again and again ends as the undisturbed one. `make chaos` does it all."""

from collections.abc import Iterator

import pytest

from tests.chaos.faults import KILLS, points, struck
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


def test_a_run_whose_worker_node_and_driver_are_killed_ends_as_the_undisturbed_one(scene: Scene, undisturbed: Weights) -> None:
    outcomes = struck(scene, points(KILLS, steps=20, seed=1), undisturbed, "killed", seed=1)
    assert [outcome.faults for outcome in outcomes] == [[], [], []]
    assert all(outcome.recovery.total_s < 60 for outcome in outcomes)
    assert scene.left_over() == []
