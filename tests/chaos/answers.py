"""Starts that are refused: what the screen says, what is kept, where the way out leads."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.checkpoints.checkpoint import MANIFEST, MODEL
from pipeline.storage.store import Store
from tests.chaos.plain_loop import undisturbed
from tests.chaos.run import RESUMED, STEP
from tests.chaos.scene import TINY, Scene, Weights
from tests.chaos.trial import Trial

SHORT = (*TINY, "train.steps=8", "train.validate_every=2", "train.workers=1")
"""The smallest training with several checkpoints; later overrides win."""
VALIDATED = (2, 4, 6, 8)
SAME = "resumed; the weights of the undisturbed run; in MLflow every step once"
LATER = b'{"version": 2, "files": {}}'
"""A manifest as a later version may write it."""


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
    """Where the cases happen: the scene, and the final weights of the undisturbed run."""

    scene: Scene
    calm: Weights

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
    return Bench(scene, Weights.stored(Store(str(local.parent)), local.name))


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


CASES: dict[str, Callable[[Bench], Iterator[Answer]]] = {
    "R2": unreadable_checkpoints,
}
"""Row of docs/field-cases.md -> its case."""
