"""Training killed at random points under a seed, each time with the weights of the undisturbed run."""

import random
from collections.abc import Iterator

import pytest

from tests.chaos.scene import Scene, kill_worker, recovery

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

STEPS = 20
TINY = (
    "data.name=tiny", "data.crop_size=49", "data.generated={num_train: 32, num_val: 10, size: 49}", "train.global_batch=4",
    f"train.steps={STEPS}", "train.validate_every=5", "train.log_every=1", "train.cpus_per_worker=0.5", "data.cpus_per_task=0.5",
    "tracking.register_as=null", "train.learning_rate=0.01",
)  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Scene(tmp_path_factory.mktemp("chaos"), TINY) as made:
        yield made
    assert made.processes() == {}


@pytest.fixture(scope="module")
def undisturbed(scene: Scene) -> str:
    """Weights of the run that nothing happened to."""
    run = scene.start("name=calm")
    assert run.finish() == 0, run.log[-3000:]
    return scene.weights(scene.config("name=calm"))


def test_a_killed_worker(scene: Scene, undisturbed: str) -> None:
    run = scene.start("name=worker-killed")
    run.wait_for_step(random.Random(1).randint(6, 9))
    at = kill_worker(scene, 1)
    found = recovery(run, run, at)
    assert run.finish() == 0, run.log[-3000:]
    assert scene.weights(scene.config("name=worker-killed")) == undisturbed
    assert found.resumed_at == 5
    assert found.total_s < 60
    print(found, found.start_s)
