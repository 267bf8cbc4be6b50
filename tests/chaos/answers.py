"""Starts that are refused and runs that end with an answer: what the screen says, what is kept, where the way out leads."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mlflow.entities.model_registry import ModelVersion

from pipeline.checkpoints.checkpoint import MANIFEST, MODEL
from pipeline.checkpoints.retention import folders
from pipeline.storage.store import Store
from tests.chaos.plain_loop import undisturbed
from tests.chaos.run import RESUMED, STEP, Run
from tests.chaos.scene import TINY, Scene, Weights, wait_until
from tests.chaos.trial import Trial, answer, contents
from tests.support.disks import kept_full, mounted
from tests.support.two_disks import MOUNTS, two_disks

SHORT = (*TINY, "train.steps=8", "train.validate_every=2", "train.workers=1")
"""The smallest training with several checkpoints; later overrides win."""
VALIDATED = (2, 4, 6, 8)
SAME = "resumed; the weights of the undisturbed run; in MLflow every step once"
LATER = b'{"version": 2, "files": {}}'
"""A manifest as a later version may write it."""
HEARD_S = 90
"""Longest time from SIGTERM to the end of a run that waits for its store."""
DISK = "300m"
"""Size of the temporary folder's disk: enough for one checkpoint."""


class Answer(NamedTuple):
    """What a user does and sees, and what is left after it."""

    row: str
    """Row of docs/field-cases.md."""
    done: str
    screen: str
    code: int
    kept: str
    then: str
    """The way out that the message tells, and its result."""


class Bench(NamedTuple):
    """Where the cases happen: the scene, the final weights of the undisturbed run, and an empty folder for a case of its own."""

    scene: Scene
    calm: Weights
    folder: Path

    def trial(self, name: str, *overrides: str) -> Trial:
        return Trial(self.scene, name, *overrides)

    def finishes(self, trial: Trial, *, resumes: bool) -> None:
        """Starts the training again: it must train on from a checkpoint, or not at all, and end like the undisturbed run."""
        run = trial.start()
        run.succeed()
        trained = [RESUMED.search(run.log) is not None, STEP.search(run.log) is not None]
        assert trained == [resumes] * 2, f"[resumed, trained] is {trained}"
        trial.check_end(self.calm, VALIDATED)


def set_up(scene: Scene, folder: Path) -> Bench:
    """Trains the undisturbed run, in a plain loop."""
    words = scene.words("train", "name=calm")[3:]
    local = undisturbed(folder / "plain", words, os.environ | scene.own)
    return Bench(scene, Weights.stored(Store(str(local.parent)), local.name), folder)


def different_disks(bench: Bench) -> Iterator[Answer]:
    if not MOUNTS:
        raise PermissionError("needs the right to mount, as root has it")
    with two_disks(bench.folder) as nodes:

        def files() -> dict[Path, bytes]:
            return {path: path.read_bytes() for path in sorted(nodes.disk.rglob("*")) if path.is_file()}

        before, said = files(), []
        for verb in ("prepare", "train"):
            code, shown = nodes.run(verb, f"storage.path={nodes.disk}")
            assert (code, "Traceback" in shown) == (1, False), shown
            found = re.findall(r".*: not the same on node \S+ \([\d.]+\) as here.*", shown)
            assert found, shown
            said += found
        assert files() == before, "the folder has changed"
        for verb in ("prepare", "train"):
            code, shown = nodes.run(verb)
            assert code == 0, shown
        yield Answer(
            "R1", "two nodes; `storage.path` is a folder that each has on its own disk; `jobs.prepare`, `jobs.train`",
            said[-1], 1, "all files of the folder",
            "a folder that all nodes share: prepared, trained to the last step",
        )  # fmt: skip


def flip(data: bytes) -> bytes:
    """The data with one bit changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def damage(trial: Trial, file: str, change: Callable[[bytes], bytes]) -> dict[str, bytes]:
    """Changes this file of every checkpoint. Returns what it was."""
    whole = {key: trial.store.read(key) for key in trial.store.list() if key.endswith(f"/{file}")}
    for key, data in whole.items():
        trial.store.write(key, change(data))
    return whole


def unreadable_checkpoints(bench: Bench) -> Iterator[Answer]:
    trial = bench.trial("damaged")
    trial.killed(5)
    cases: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
        "one flipped bit in the weights of every checkpoint": (MODEL, flip, "put back a copy of one"),
        "a manifest of a later version in every checkpoint": (MANIFEST, lambda _: LATER, "run the version of this program"),
    }
    said = {}
    for name, (file, change, way) in cases.items():
        whole = damage(trial, file, change)
        assert len(whole) > 1, "one checkpoint only"
        said[name] = trial.refused(f"holds checkpoints, but none that can be used .* nothing was changed: .*{way}")
        for key, data in whole.items():
            trial.store.write(key, data)
    bench.finishes(trial, resumes=True)
    for name, text in said.items():
        yield Answer(
            "R2", f"the driver killed after step 5, {name}, then the same command", text, 1, "every object of the run",
            f"copies put back: {SAME}",
        )  # fmt: skip


def registered_weights(bench: Bench) -> Iterator[Answer]:
    trial = bench.trial("registered", "tracking.register_as=chaos", "train.keep_checkpoints=1")
    trial.start("stop.hours=1e-5").succeed()
    (version,) = trial.client.search_model_versions("name = 'chaos'")
    name = version.tags["ccnet.checkpoint_url"].rpartition("/")[2]
    before = {key: hashed for key, hashed in contents(trial.store).items() if key.startswith(f"{name}/")}
    bench.finishes(trial, resumes=True)
    newest = max(trial.client.search_model_versions("name = 'chaos'"), key=lambda found: int(found.version))
    miou, better = (float(found.tags["ccnet.miou"]) for found in (version, newest))
    assert better > miou, f"no better score: {miou} and {better}"
    assert before.items() <= contents(trial.store).items(), f"{name} is not as it was"
    assert len(folders(trial.store)) < len(VALIDATED), "nothing was pruned"
    score = scored(trial, version)
    yield Answer(
        "R3", f"a run that `stop.hours` ended has registered its best checkpoint (mIoU {miou:.4f}), is resumed and scores "
        f"{better:.4f}; `jobs.evaluate` on the first version", score, 0, f"{name}, to which version {version.version} refers",
        "resumed to the last step; the weights of the undisturbed run",
    )  # fmt: skip
    yield from other_weights(trial, version, name, score)


def other_weights(trial: Trial, version: ModelVersion, name: str, score: str) -> Iterator[Answer]:
    """Puts the last checkpoint into the folder `name` of a registered version, whose score was `score`."""
    own = {key: trial.store.read(key) for key in trial.store.list() if key.startswith(f"{name}/")}
    for key in own:
        other = f"step-{trial.config.train.steps:06d}/{key.partition('/')[2]}"
        if trial.store.exists(other):
            trial.store.write(key, trial.store.read(other))
    replaced = contents(trial.store)
    said = answer(evaluated(trial, version), f"{name}: holds other weights .* put those back, or set evaluate.checkpoint=")
    assert contents(trial.store) == replaced, "evaluate changed the folder"
    for key, data in own.items():
        trial.store.write(key, data)
    assert scored(trial, version) == score, "another score than before"
    yield Answer(
        "R4", "other weights, whole, in the folder of a registered version; `jobs.evaluate` on the version", said, 1,
        "every object of the run", "put back: the score of before",
    )  # fmt: skip


def evaluated(trial: Trial, version: ModelVersion) -> Run:
    return trial.job("evaluate", f"evaluate.checkpoint=models:/{version.name}/{version.version}")


def scored(trial: Trial, version: ModelVersion) -> str:
    """The line of a version's mIoU, which must be the registered one."""
    run = evaluated(trial, version)
    answer(run, "^protocol ", 0)
    (line,) = re.findall(r"^mIoU .*", run.log, re.MULTILINE)
    assert f" {float(version.tags['ccnet.miou']):.4f} " in line, f"{line}, registered: {version.tags['ccnet.miou']}"
    return str(line)


def mlflow_away_at_the_end(bench: Bench) -> Iterator[Answer]:
    trial = bench.trial("away", "evaluate.background=true")
    run = trial.start()
    run.wait_for_step(3)
    bench.scene.mlflow.stop()
    try:
        said = answer(run, "^tracking.uri = .*: run the same command again")
        waiting = trial.store.list("metrics")
        assert waiting, "nothing waits in the run's folder"
    finally:
        bench.scene.mlflow.start()
    bench.finishes(trial, resumes=False)
    assert not trial.store.list("metrics"), "some records still wait"
    yield Answer(
        "R5", "validation in the background; MLflow away from step 3 to the end", said, 1,
        "weights; all metric points, in the run's folder",
        "MLflow is back, the same command: all points and scores arrive, each once; not trained again",
    )  # fmt: skip


def full_temporary_folder(bench: Bench) -> Iterator[Answer]:
    trial, temporary = bench.trial("full"), Path(bench.scene.own["TMPDIR"])
    with mounted(temporary, DISK):
        run = trial.start()
        wait_until(lambda: bench.scene.committed(trial.config) >= 2 or run.process.poll() is not None, 240)
        assert run.process.poll() is None, run.log[-6000:]
        with kept_full(temporary):
            said = answer(run, "the disk is full .*free some space there, or set TMPDIR")
        assert re.search("the disk is full .*retried from the last checkpoint", run.log), "not retried"
        # A new attempt may find room before the disk is full again, and train to the end: then only the record is left to do.
        bench.finishes(trial, resumes=bench.scene.committed(trial.config) < VALIDATED[-1])
    yield Answer(
        "R9", "the temporary folder, a disk of its own, full from the first checkpoint on", said, 1,
        "checkpoints and metric points",
        f"retried by itself; space made, the same command: {SAME}",
    )  # fmt: skip


def deleted_mlflow_run(bench: Bench) -> Iterator[Answer]:
    trial = bench.trial("deleted")
    run = trial.start()
    run.wait_for_step(3)
    deleted = trial.recorded().info.run_id
    trial.client.delete_run(deleted)
    said = answer(run, f"MLflow run {deleted} was deleted: restore it .* or run the same command again")
    bench.finishes(trial, resumes=False)
    assert trial.recorded().data.tags["ccnet.earlier_run"] == deleted
    yield Answer(
        "R11", "the run deleted in MLflow after step 3", said, 1, "weights; all metric points",
        "the same command: a new run in MLflow takes over the points, every step once; not trained again",
    )  # fmt: skip


def second_driver(bench: Bench) -> Iterator[Answer]:
    trial = bench.trial("twice")
    first = trial.start()
    first.wait_for("MLflow run ")
    said = answer(trial.start(), rf"in use by process {first.process.pid} on host \S+ since .*wait for its end, or stop it")
    assert first.process.poll() is None, "the first driver has ended"
    first.succeed()
    trial.check_end(bench.calm, VALIDATED)
    yield Answer(
        "R16", "the same command again while the first still trains", said, 1, "the first trains on as if nothing had happened",
        "waited for its end: the weights of the undisturbed run; in MLflow every step once",
    )  # fmt: skip


def trickling_store(bench: Bench) -> Iterator[Answer]:
    with trickles(trial := bench.trial("trickling"), "storage.patience_s=20") as run:
        said = answer(run, "too slow .less than 128 KiB in 60 s.*look for what fills the network")
    bench.finishes(trial, resumes=True)
    with trickles(trial := bench.trial("trickling-stopped")) as run:
        run.wait_for_step(6)  # waits for the checkpoint before
        run.process.terminate()
        started = time.monotonic()
        stopped = answer(run, "stopped on request; .*the checkpoint of step 4 and what was trained after it are not stored")
        assert (heard_s := time.monotonic() - started) < HEARD_S, f"ended {heard_s:.0f} s after SIGTERM"
    bench.finishes(trial, resumes=True)
    for done, text in {"": said, f"; SIGTERM to the driver alone, which ends within {HEARD_S} s": stopped}.items():
        yield Answer(
            "R18", f"the store carries 1 KB/s on each connection from the first checkpoint on{done}", text, 1,
            "the checkpoints that were stored", f"the store as before, the same command: {SAME}",
        )  # fmt: skip


@contextmanager
def trickles(trial: Trial, *more: str) -> Iterator[Run]:
    """A training whose store trickles in this block, from its first checkpoint on."""
    run = trial.start(*more)
    run.wait_for_step(3)
    wait_until(lambda: trial.scene.committed(trial.config) >= 2, 60)
    trial.scene.proxy.rate = 1000
    try:
        yield run
    finally:
        trial.scene.proxy.rate = None


CASES: dict[str, Callable[[Bench], Iterator[Answer]]] = {
    "R1": different_disks,
    "R2": unreadable_checkpoints,
    "R3": registered_weights,
    "R5": mlflow_away_at_the_end,
    "R9": full_temporary_folder,
    "R11": deleted_mlflow_run,
    "R16": second_driver,
    "R18": trickling_store,
}
"""Row of docs/field-cases.md -> its case; that of R3 answers R4 too."""
