"""The short chaos suite: a run with several faults ends like the undisturbed one. `make chaos` runs all faults."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.storage.store import open_store
from tests.chaos import plain_loop
from tests.chaos.faults import KILLS, struck
from tests.chaos.scene import Scene, Weights, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Scene(tmp_path_factory.mktemp("chaos")) as made:
        yield made
    wait_until(lambda: not made.processes(), 10)


@pytest.fixture(scope="module")
def undisturbed(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The final weights of a plain loop over the same data."""
    words = scene.words("train", "name=killed")[3:]
    folder = plain_loop.undisturbed(tmp_path_factory.mktemp("plain"), words, os.environ | scene.own)
    return Weights.stored(open_store(str(folder.parent), scene.config().storage), folder.name)


def mlflow_text(client: MlflowClient, run_id: str, name: str) -> str:
    """A text artifact of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, name, folder)).read_text()


def test_a_run_whose_driver_and_node_are_killed_ends_with_the_weights_of_a_plain_loop(scene: Scene, undisturbed: Weights) -> None:
    """The second node holds a worker, which is killed with it."""
    outcomes = struck(scene, list(zip(KILLS[1:], (8, 13), strict=True)), undisturbed, "killed", seed=1)
    assert [outcome.faults for outcome in outcomes] == [[], []]
    assert outcomes[1].recovery.resumed_at > 0, "no checkpoint was complete by then"
    assert scene.left_over() == []
    # One run in MLflow, and each point once.
    client = MlflowClient(scene.mlflow.uri)
    experiment = client.get_experiment_by_name("demo")
    key = scene.config("name=killed").run_key
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`ccnet.run_key` = '{key}'")
    assert run.info.status == "FINISHED"
    assert sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/loss")) == list(range(1, 16))
    assert sorted(point.step for point in client.get_metric_history(run.info.run_id, "val/miou")) == [5, 10, 15]
    kinds = [json.loads(line)["kind"] for line in mlflow_text(client, run.info.run_id, "faults.jsonl").splitlines()]
    assert kinds == ["infrastructure"], "the node's end; no process could record the driver's"
