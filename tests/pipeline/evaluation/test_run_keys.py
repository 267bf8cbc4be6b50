"""A checkpoint is found by the key of its run, and a configuration without one is told which runs have its name."""

from pathlib import Path

import pytest
import torch

from pipeline.config.load import override
from pipeline.data.manifest import open_data
from pipeline.data.synthetic import NAMES
from pipeline.delivery.deliver import deliver
from pipeline.errors import CheckpointError, ModelError
from pipeline.evaluation.inference import load_network
from pipeline.storage.store import Store
from tests.support import untrained
from tests.support.delivered import facts


def test_a_run_is_found_by_its_key_and_where_there_is_none_those_of_the_same_name_are_listed(tmp_path: Path) -> None:
    made = untrained.make(tmp_path / "storage", tmp_path)
    other = override(made, {"train.learning_rate": 0.02, "seed": 7})
    with pytest.raises(CheckpointError) as caught:
        load_network(other, open_data(made))
    first, _, line = str(caught.value).splitlines()
    assert first.endswith(f"{other.run_key}/: no checkpoint with a score; run jobs.train first, or set evaluate.checkpoint")
    assert line == f"  {made.run_key}  step 1  mIoU 0.5000  seed was 0 and is 7; train.learning_rate was 0.01 and is 0.02"
    named = override(other, {"evaluate.checkpoint": made.run_key})
    assert load_network(named, open_data(made))[1].url.endswith(f"{made.run_key}/step-000001")


def test_a_delivered_model_is_a_checkpoint_too(tmp_path: Path) -> None:
    made = untrained.make(tmp_path / "storage", tmp_path)
    _, best = load_network(made, open_data(made))
    given = facts()
    given |= {"network": best.progress["model"], "class_names": list(NAMES), "score": given["score"] | {"class_iou": [0.5] * 6}}
    address = deliver(Store(str(tmp_path / "model")), best.weights, given).address
    other = override(made, {"name": "other", "seed": 7, "evaluate.checkpoint": address})
    net, found = load_network(other, open_data(other))
    assert (found.url, found.sha256, found.step) == (address, "a" * 64, 40)
    assert all(torch.equal(value, best.weights[name]) for name, value in net.state_dict().items())
    (tmp_path / "model/model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file that model\.json names"):
        load_network(other, open_data(other))


def test_without_another_run_nothing_is_listed(tmp_path: Path) -> None:
    made = override(untrained.make(tmp_path / "storage", tmp_path), {"name": "other"})
    with pytest.raises(CheckpointError) as caught:
        load_network(made, open_data(made))
    assert len(str(caught.value).splitlines()) == 1
