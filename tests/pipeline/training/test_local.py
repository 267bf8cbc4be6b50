"""`train.workers=0`: the command's own process trains and makes its data, so that a debugger reaches both."""

import os
import traceback
from pathlib import Path

import pytest
import torch

from ccnet import distributed
from jobs import prepare
from pipeline.checkpoints import checkpoint
from pipeline.config.load import load
from pipeline.errors import ConfigError
from pipeline.storage.store import open_store
from pipeline.training.train import train
from tests.chaos import plain_loop

CONFIG = str(Path(__file__).parents[3] / "jobs/configs/demo.yaml")
TINY = [
    "data.crop_size=49",
    "data.generated={num_train: 16, num_val: 4, size: 49}",
    "data.augment=watched:watch",
    "train.workers=0",
    "train.global_batch=4",
    "train.steps=6",
    "train.validate_every=2",
    "tracking.register_as=null",
]
WATCHED = """
import os

processes, calls, breaks_at = set(), 0, 13

def watch(image, label, rng):
    global calls
    calls += 1
    processes.add(os.getpid())
    if calls == breaks_at:
        raise KeyError("a mistake of the user's")
    return image, label
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_trains_here_fails_where_the_mistake_is_and_resumes(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = [*TINY, f"storage.path={tmp_path}/outputs", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    config = load(CONFIG, words)
    assert prepare.run(config) == 0
    threads = torch.get_num_threads()
    with pytest.raises(KeyError, match="a mistake of the user's") as raised:
        train(config)
    assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "watch"
    store = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    assert checkpoint.latest_step(store) == 2
    outcome = train(config)
    import watched

    assert watched.processes == {os.getpid()}
    assert watched.calls == 13 + 1 + 4 * 4, "up to the mistake; then once by the checks, and the four steps after the checkpoint"
    assert outcome.score.num_images == 4
    whole = plain_loop.train(config, distributed.num_threads(1)).net.state_dict()
    torch.set_num_threads(threads)
    found = checkpoint.load(store, checkpoint.folder_name(6)).model
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


def test_what_needs_other_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.workers = 0 validates in place \(try evaluate\.background=false\)"):
        load(CONFIG, ["train.workers=0", "evaluate.background=true"])
    for workers in ("-1", "[0, 2]"):
        with pytest.raises(ConfigError, match=r"must be a number from 1, .* or 0 for this process alone"):
            load(CONFIG, [f"train.workers={workers}"])
