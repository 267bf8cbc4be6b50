"""Failures inside a worker, in complete runs: what the user reads, what MLflow holds, and the final weights."""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
from mlflow import MlflowClient
from mlflow.entities import Run

from jobs.cli import main
from jobs.train import run
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import load
from pipeline.data.prepare import prepare
from pipeline.fault_tolerance.step_failures import MICRO_BATCH
from pipeline.storage.store import Store, open_store
from pipeline.training.checkpointing import RunRecord

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

CONFIG = "jobs/configs/demo.yaml"
STEPS = 8
TINY = [
    "data.name=tiny", "data.crop_size=17", "data.generated={num_train: 32, num_val: 2, size: 33}", "train.global_batch=4",
    f"train.steps={STEPS}", "train.validate_every=4", "train.log_every=1", "train.learning_rate=0.01",
    "tracking.register_as=null",
    "model.backbone=resnet18", "model.gamma_init=0", "train.warmup_steps=0",  # with the small one no step of fp16 overflows
]  # fmt: skip
OPTIONS = ("train.precision=fp16", "train.ema_decay=0.9", "train.clip_norm=1.0")
STARTED = "Started training worker group"


class Ended(NamedTuple):
    """A finished training."""

    code: int
    messages: list[str]
    """The command's own lines on standard error."""
    log: str
    """Output of all processes of the cluster during the training."""
    config: Config
    store: Store
    """The run's folder."""
    record: Run
    """The run in MLflow."""
    faults: list[dict[str, Any]]
    """The lines of faults.jsonl in MLflow."""
    imports: list[tuple[str, set[str]]]
    """(title, watched modules) of each process that started during the training."""
    seconds: float
    """What the command took."""

    def remembered(self) -> RunRecord:
        """The record in the newest checkpoint. MLflow has the same of where the time went."""
        newest = checkpoint.newest_progress(self.store)
        assert newest is not None
        found = RunRecord.of(newest)
        points = found.goodput.points(self.config)
        assert {key: self.record.data.metrics[key] for key in points} == pytest.approx(points)
        return found

    def weights(self) -> str:
        """sha256 of the network and its average after the last step."""
        name = checkpoint.folder_name(STEPS)
        checkpoint.load(self.store, name)
        files = [f"{name}/{file}" for file in (checkpoint.MODEL, checkpoint.AVERAGE)]
        return hashlib.sha256(b"".join(self.store.read(file) for file in files if self.store.exists(file))).hexdigest()


Log = Callable[[], str]


class Place:
    """A folder for data, runs and MLflow's database, and a cluster of this process."""

    def __init__(self, folder: Path, cluster: Any) -> None:
        self.cluster = cluster
        """The fixture `local_ray`."""
        self.folder, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)

    def words(self, *overrides: str) -> list[str]:
        return [*TINY, f"storage.path={self.folder}/store", f"tracking.uri={self.uri}", *overrides]

    def logs(self) -> dict[Path, str]:
        """The output of each process of the cluster."""
        folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
        return {file: file.read_text(errors="replace") for file in folder.glob("worker-*")}

    def imports(self) -> dict[Path, tuple[str, set[str]]]:
        """(title, watched modules) of each process of the cluster so far."""
        found = {}
        for file in self.cluster.imports.iterdir():
            # The file of a running process may not have a line yet.
            if lines := [line.split("\t") for line in file.read_text().splitlines() if "\t" in line]:
                found[file] = lines[-1][0].removeprefix("ray::"), {module for _, module in lines}
        return found

    def train(self, *overrides: str, meanwhile: Callable[[Log], None] = lambda log: None) -> Ended:
        """Runs `python -m jobs.train` in this process; `meanwhile` runs in parallel and can read the log so far."""
        before, processes, began = self.logs(), self.imports(), time.monotonic()

        def log() -> str:
            return "".join(text[len(before.get(file, "")) :] for file, text in self.logs().items())

        thread = threading.Thread(target=meanwhile, args=(log,))
        thread.start()
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main(run, [CONFIG, *self.words(*overrides)])
        seconds = time.monotonic() - began
        thread.join()
        # Ray shows lines of the cluster's processes as `(name pid=1) line`, and its own lines with a date in front.
        messages = [line for line in errors.getvalue().splitlines() if line and not re.match(r"\(|\d{4}-\d\d-\d\d ", line)]
        config = load(CONFIG, self.words(*overrides))
        store = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
        started = [of_process for file, of_process in self.imports().items() if file not in processes]
        return Ended(code, messages, log(), config, store, *self.recorded(config), started, seconds)

    def recorded(self, config: Config) -> tuple[Run, list[dict[str, Any]]]:
        """A configuration's run in MLflow, and its faults."""
        experiment = self.client.get_experiment_by_name(config.tracking.experiment)
        (record,) = self.client.search_runs([experiment.experiment_id], f"tags.`ccnet.run_key` = '{config.run_key}'")
        if "faults.jsonl" not in self.artifacts(record):
            return record, []
        return record, [json.loads(line) for line in self.text(record, "faults.jsonl").splitlines()]

    def history(self, ended: Ended, key: str) -> dict[int, float]:
        """Step -> value of a metric in MLflow."""
        return {point.step: point.value for point in self.client.get_metric_history(ended.record.info.run_id, key)}

    def artifacts(self, record: Run, folder: str | None = None) -> list[str]:
        return [found.path for found in self.client.list_artifacts(record.info.run_id, folder)]

    def text(self, record: Run, name: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(record.info.run_id, name, folder)).read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, local_ray: Any) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("survival"), local_ray)
    level = logging.getLogger("pipeline").level, logging.getLogger().level
    prepare(load(CONFIG, made.words()))
    yield made
    logging.getLogger("pipeline").setLevel(level[0])
    logging.getLogger().setLevel(level[1])


def workers() -> list[int]:
    """Process ids of the training workers of this process's cluster, the newest last."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)], names[int(entry.name)] = int(stat.rpartition(")")[2].split()[1]), stat
    ours = {os.getpid()}
    for _ in range(4):
        ours |= {child for child, parent in parents.items() if parent in ours}
    return sorted(pid for pid in ours if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def stop_one_after(step: int, stopped: list[int], log: Log) -> None:
    """Stops one of the workers by SIGSTOP once that step is done."""
    deadline = time.monotonic() + 200
    while f"step {step}/{STEPS}  loss" not in log():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stopped.append(workers()[-1])
    os.kill(stopped[0], signal.SIGSTOP)


@pytest.fixture(scope="module")
def calm(place: Place) -> Ended:
    """A run without faults, one image a pass."""
    ended = place.train(*OPTIONS, "name=calm", "train.micro_batch=1")
    assert ended.code == 0, ended.log[-3000:]
    return ended


UNUSED = {
    "TrainController": {"ccnet", "matplotlib", "mlflow", "triton"},
    "DatasetManager": {"matplotlib", "mlflow", "torch"},
    "SplitCoordinator": {"matplotlib", "mlflow", "torch"},
    "ReadRange": {"matplotlib", "mlflow", "ray.train", "torch"},
}
"""Modules that a process of this title must not import: on few cores, imports take most of a start."""


def test_each_process_imports_what_it_uses(calm: Ended) -> None:
    found = [(kind, modules) for title, modules in calm.imports for kind in UNUSED if title.startswith(kind)]
    assert {kind for kind, _ in found} >= UNUSED.keys() - {"ReadRange"}, "a task may run in an older process"
    assert [(kind, modules & UNUSED[kind]) for kind, modules in found if modules & UNUSED[kind]] == []
    workers = [modules for _, modules in calm.imports if "pipeline.training.loop" in modules]
    for of_rank_0 in ("matplotlib", "mlflow"):
        assert sorted(of_rank_0 in modules for modules in workers) == [False, True], of_rank_0


def test_a_worker_that_hangs_is_reported_with_its_stacks_and_the_run_ends_with_the_weights_of_an_undisturbed_one(
    place: Place, calm: Ended
) -> None:
    """With fp16, because the scale that the gradient scaler found by skipping steps is part of the state."""
    assert 0 < place.history(calm, "train/skipped_steps")[STEPS] < STEPS, "no step overflowed, or every one"
    kept = min(place.history(calm, "val/miou"))
    assert checkpoint.load(calm.store, checkpoint.folder_name(kept)).progress["scaler"]["scale"] < 2**16
    stopped: list[int] = []
    options = (*OPTIONS, "name=hung", "train.micro_batch=1", "faults.hang_s=8")
    hung = place.train(*options, meanwhile=lambda log: stop_one_after(kept + 1, stopped, log))
    assert hung.code == 0, hung.log[-3000:]
    assert not Path(f"/proc/{stopped[0]}").exists()
    assert (hung.log.count(STARTED), hung.log.count(f"resumed at step {kept} ")) == (2, 1)
    assert "no progress for 8 s: worker " in hung.log
    (name,) = place.artifacts(hung.record, "stacks")
    assert "in train_step" in place.text(hung.record, name)
    assert [(fault["kind"], fault["did"][:14]) for fault in hung.faults] == [("infrastructure", "retried from t")]
    assert hung.weights() == calm.weights()
    # Where the time went: the parts add up, and what the interruption cost is in one of them.
    for ended in (calm, hung):
        record = ended.remembered()
        parts = record.goodput
        assert 3600 * record.spent.hours < parts.total < ended.seconds, "from the first step on, the start, the whole command"
        assert min(parts.stepping, parts.waiting, parts.validating, parts.starting, parts.other) > 0
        assert parts.steps == STEPS, "a step that is computed again counts once"
        assert parts.worker_s == pytest.approx(2 * parts.total)
        assert parts.lost == 0 if ended is calm else parts.lost > 8, "faults.hang_s at least"


def test_short_memory_halves_the_passes_for_good(place: Place, calm: Ended) -> None:
    """With fp16, an average and clipping. The interrupted run ends with the weights of the uninterrupted one."""
    place.cluster.fits.write_text("1")
    short = place.train(*OPTIONS, "name=short")
    place.cluster.fits.unlink()
    assert short.code == 0, short.log[-3000:]
    message = "2 images a pass do not fit at step 0; the next attempt takes 1, gradients added up to the same global batch"
    assert message in short.log
    assert json.loads(short.store.read(MICRO_BATCH)) == {"micro_batch": 1, "step": 0}
    assert short.log.count(STARTED) == 2
    assert [(fault["kind"], fault["did"]) for fault in short.faults] == [("memory", "resumes in smaller passes")]
    assert short.weights() == calm.weights()


def test_without_a_finite_loss_the_run_goes_back_and_ends_with_the_diagnosis(place: Place) -> None:
    ended = place.train(
        "name=diverged", "train.learning_rate=1e8", "train.warmup_steps=4", "train.validate_every=1",
        "faults.max_skipped_steps=3", "faults.max_rollbacks=1",
    )  # fmt: skip
    assert ended.code == 1
    what, did = ended.messages[-2:]
    assert re.match(r"worker [01].*: 3 steps in a row without a finite loss and gradient; the last one: step 4: loss nan", what)
    assert "Usual fixes: a lower train.learning_rate" in what
    assert did == "not retried: it went back to a checkpoint as often as faults.max_rollbacks = 1 allows"
    # Steps 2 to 4 were skipped, without a checkpoint: a run resumed from one could not learn.
    assert (ended.log.count(STARTED), ended.log.count("resumed at step 2 ")) == (2, 1)
    skipped_steps = [line for line in ended.log.splitlines() if "skipped, loss or gradient is not finite: step 2" in line]
    assert len(skipped_steps) == 4, "both workers, twice"
    assert place.history(ended, "train/skipped_steps") == {3: 1, 4: 2}
    assert [(fault["kind"], fault["did"][:15]) for fault in ended.faults] == [
        ("not finite", "back to the las"),
        ("not finite", "not retried: it"),
    ]
    assert ended.record.info.status == "FAILED"


def test_a_sample_that_cannot_be_read_ends_the_run_at_the_first_failure(place: Place) -> None:
    (shard,) = place.folder.glob("store/data/tiny/*/train-*.parquet")
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    ended = place.train("name=unreadable", "train.workers=1")
    shard.write_bytes(whole)
    assert ended.code == 1
    what, did = ended.messages[-2:]
    assert re.match(rf"worker 0: SampleError: {shard}: corrupt: .*delete it and run python -m jobs.prepare CONFIG again", what)
    assert did == "not retried: it would repeat"
    assert ended.log.count(STARTED) == 1
    assert [fault["kind"] for fault in ended.faults] == ["deterministic"]
    assert ended.record.info.status == "FAILED"
