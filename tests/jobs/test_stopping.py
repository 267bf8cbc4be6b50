"""Ctrl-C and SIGTERM end a command with one sentence and an exit code that is not 0; what it began is undone or recorded."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.checkpoints import checkpoint
from pipeline.config.load import load
from pipeline.data import synthetic
from pipeline.data.prepare import prepare
from pipeline.images.codec import decode_label, encode_png
from pipeline.storage.store import open_store
from pipeline.tracking.runs import STOP_REASON
from pipeline.training.train import STOPPED
from tests.support import untrained

CONFIG = "jobs/configs/demo.yaml"
SAID = {
    signal.SIGINT: (130, "stopped by Ctrl-C before the end: run the same command again"),
    signal.SIGTERM: (143, "stopped by SIGTERM before the end: run the same command again"),
}


def words(folder: Path, num_train: int) -> list[str]:
    """The arguments of a command on generated images, with everything in a folder."""
    data = f"data.generated={{num_train: {num_train}, num_val: 2, size: 33}}"
    return [f"storage.path={folder}/out", f"tracking.uri=sqlite:///{folder}/mlflow.db", "data.name=tiny", "data.crop_size=17",
            "data.shard_rows=20", "train.workers=1", "train.global_batch=2", "tracking.register_as=null", data]  # fmt: skip


def stopped(
    verb: str, arguments: Sequence[str], number: signal.Signals, when: Callable[[str], bool], config: str = CONFIG
) -> list[str]:
    """Runs a command and sends the signal after each line for which `when` is true; SIGINT goes to its group, as from a terminal.

    Returns its lines on standard error. Fails unless the last one is the only sentence, with its exit code.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", f"jobs.{verb}", config, *arguments],
        env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        # a shell's background jobs ignore SIGINT, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    guard = threading.Timer(300, process.kill)
    guard.start()
    lines = []
    with process:
        for line in process.stderr or ():
            lines.append(line.rstrip("\n"))
            if when(line):
                (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    code = process.returncode
    guard.cancel()
    text = "\n".join(lines)
    assert (code, lines[-1]) == SAID[number], text
    assert "Traceback" not in text, text
    return lines


@pytest.mark.parametrize("number", SAID)
def test_a_preparation_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    stopped("prepare", words(tmp_path, 200_000), number, lambda line: line.startswith("prepare: "))
    assert open_store(str(tmp_path / "out"), load(CONFIG, words(tmp_path, 1)).storage).list() == []


@pytest.mark.parametrize("number", SAID)
def test_a_prediction_that_is_stopped_leaves_whole_results(tmp_path: Path, number: signal.Signals) -> None:
    config = untrained.make(tmp_path / "storage", tmp_path)
    images, output, file = tmp_path / "images", tmp_path / "masks", tmp_path / "config.yaml"
    images.mkdir()
    for index in range(1000):
        (images / f"{index}.png").write_bytes(encode_png(synthetic.sample(0, 0, 33)[0]))
    file.write_text(json.dumps(config.record()))
    arguments = [f"predict.images={images}", f"predict.output={output}", "predict.limit=999"]
    stopped("predict", arguments, number, lambda line: line.startswith("predict.limit"), str(file))
    written = list(output.glob("*"))
    assert len(written) < 2 * 999
    assert all(decode_label(file.read_bytes()).shape == (33, 33) for file in written if "_overlay" not in file.name)


@pytest.mark.slow
@pytest.mark.parametrize("number", SAID)
def test_a_training_that_is_stopped_stores_a_checkpoint_and_says_so_in_mlflow(tmp_path: Path, number: signal.Signals) -> None:
    made = [*words(tmp_path, 8), "train.steps=4000", "train.validate_every=4000", "train.log_every=1", "faults.look_every=2"]
    config = load(CONFIG, made)
    prepare(config)
    lines = stopped("train", made, number, lambda line: " step 3/" in line)
    assert sum("stop requested" in line for line in lines) == 1
    run = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    newest = checkpoint.newest_progress(run)
    assert newest is not None
    assert newest["interrupted"] == STOPPED
    assert not run.exists("lease.json")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    recorded = client.get_run(newest["run_id"])
    assert (recorded.info.status, recorded.data.tags[STOP_REASON]) == ("KILLED", STOPPED)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["one request", "two requests"])
def test_a_training_that_is_stopped_before_it_trains_ends_at_once(tmp_path: Path, again: bool) -> None:
    """Nothing is trained yet, so no second request is needed."""
    made = [*words(tmp_path, 8), "train.steps=4000", "train.log_every=1", "faults.look_every=1000"]
    prepare(load(CONFIG, made))
    lines = stopped(
        "train", made, signal.SIGTERM, lambda line: "Requesting resources" in line or (again and "stop requested" in line)
    )
    assert not [line for line in lines if line.startswith("step ")]
    (run,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert (run.info.status, run.data.tags[STOP_REASON]) == ("KILLED", STOPPED)
