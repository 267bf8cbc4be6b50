"""Parts of the training loop that can be tested alone."""

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from pipeline.checkpoints import checkpoint
from pipeline.config.load import override
from pipeline.data.manifest import Manifest
from pipeline.errors import CheckpointError
from pipeline.evaluation.metrics import Score
from pipeline.storage.lease import LEASE, Claim, Holder, held
from pipeline.storage.store import Store
from pipeline.tracking import registry, runs
from pipeline.tracking.client import connect, tracking_uri
from pipeline.training.best import best_of, record_best
from pipeline.training.loop import replaced_in_all
from pipeline.training.run import Run
from pipeline.training.train import STOPPED, end_run
from tests.support.checkpoints import saved
from tests.support.own_data import config


def test_a_run_that_was_asked_to_stop_says_so_in_mlflow_until_it_is_resumed(tmp_path: Path) -> None:
    made = override(config(tmp_path), {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"})
    uri, store = tracking_uri(made.tracking), Store(str(tmp_path / "run"))
    run_id = runs.open_mlflow_run(made, environment={})
    recorded = partial(connect(uri).get_run, run_id)
    with held(store) as claim:
        run = Run(made, cast(Any, None), store, uri, run_id, claim)
        end_run(run, SystemExit(143), STOPPED)
        assert (recorded().info.status, recorded().data.tags[runs.STOP_REASON]) == ("KILLED", STOPPED)
        assert runs.open_mlflow_run(made, environment={}) == run_id
        assert runs.STOP_REASON not in recorded().data.tags
        theirs = Holder.this_process()._replace(id="b")
        store.write(LEASE, json.dumps(theirs._asdict()).encode())
        end_run(run, RuntimeError("taken over"))
    assert recorded().info.status == "RUNNING", "the other process trains it now"


CPU = torch.device("cpu")


def test_replaced_samples_are_counted_and_stop_the_run_past_the_number_allowed(tmp_path: Path) -> None:
    assert replaced_in_all(config(tmp_path), 0, CPU) == 0
    assert replaced_in_all(config(tmp_path, max_skipped=3), 3, CPU) == 3
    with pytest.raises(RuntimeError, match=r"4 training samples .* were replaced, data\.max_skipped = 3"):
        replaced_in_all(config(tmp_path, max_skipped=3), 4, CPU)


@pytest.mark.parametrize("recorded", [{}, {"score": None}, {"score": {"counts": [[1]], "entropy": 0.1}}])
def test_a_score_of_another_version_is_named(tmp_path: Path, recorded: dict[str, object]) -> None:
    store = Store(str(tmp_path / "run"))
    manifest = Manifest("g", "generated", ("road", "car"), (), {}, {}, True, "")
    run = Run(config(tmp_path), manifest, store, "", "", Claim(store, ""))
    saved(store, tmp_path, 10, 0.5, **recorded)
    with pytest.raises(CheckpointError, match=r"step-000010: its score is of another version of this program .*\(name=\.\.\.\)"):
        best_of(run)


@pytest.mark.slow
def test_the_checkpoint_of_a_registered_version_is_not_pruned(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    made = override(config(tmp_path), {"tracking.uri": uri, "tracking.register_as": "roads"})
    store = Store(str(tmp_path / "run"))
    manifest = Manifest("g", "generated", ("road", "car"), (), {}, {}, True, "")
    run = Run(made, manifest, store, uri, runs.open_mlflow_run(made, environment={}), Claim(store, ""))
    saved(store, tmp_path, 10, 0.5)
    best = checkpoint.load_best(store)
    assert best is not None
    record_best(run, best, Score([[2, 1], [0, 2]], ("road", "car"), 1, {}, [[2, 1], [0, 2]]))
    for step in (20, 30, 40):
        saved(store, tmp_path, step, step / 50)
        checkpoint.prune(store, 1)
    assert registry.find_checkpoint(uri, "models:/roads/1").url == store.url("step-000010")
    checkpoint.verify(store, "step-000010")
    assert not store.list("step-000020")
