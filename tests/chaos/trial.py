"""A training of the scene as its user sees it: the command, the end of its screen, its folder and its points in MLflow."""

import hashlib
import re
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import Run as Recorded

from pipeline.storage.lease import LEASE
from pipeline.storage.store import Store
from tests.chaos.run import Run
from tests.chaos.scene import Scene, Weights, wait_until

LONGEST_ANSWER = 6
"""Lines of an answer at the end of the screen."""


def answer(run: Run, pattern: str, code: int = 1) -> str:
    """What the screen ends with, from the last line that matches on. Raises AssertionError if the end is another one."""
    found = run.finish()
    lines = run.log.splitlines()
    start = max((i for i, line in enumerate(lines) if re.search(pattern, line)), default=-LONGEST_ANSWER - 1)
    assert found == code, f"exit code {found} instead of {code}:\n{run.log[-3000:]}"
    assert len(lines) - start <= LONGEST_ANSWER, f"the screen does not end with {pattern!r}:\n{run.log[-3000:]}"
    assert "Traceback" not in run.log, run.log[-6000:]
    return "\n".join(lines[start:])


def contents(store: Store) -> dict[str, str]:
    """sha256 of each object in the folder of a run, without the lease, which says only who uses it."""
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.list() if key != LEASE}


class Trial:
    """One run of a scene, by its name and its own settings."""

    def __init__(self, scene: Scene, name: str, *overrides: str) -> None:
        self.scene, self.overrides = scene, (f"name={name}", *overrides)
        self.config = scene.config(*self.overrides)
        self.store = scene.store(self.config)
        self.client = MlflowClient(scene.mlflow.uri)

    def start(self, *more: str) -> Run:
        """Starts the training, or resumes it."""
        return self.scene.start(*self.overrides, *more)

    def job(self, verb: str, *more: str) -> Run:
        """Starts another command on the same configuration."""
        return self.scene.run(self.scene.words(verb, *self.overrides, *more))

    def killed(self, step: int) -> None:
        """Starts the training and kills its driver once that step is done and the checkpoint before it is stored."""
        run = self.start()
        run.wait_for_step(step)
        wait_until(lambda: self.scene.committed(self.config) >= step - 1, 30)
        run.kill()
        # Without their driver the workers end within seconds; until then they may store one more checkpoint.
        wait_until(lambda: not [*self.scene.workers(), *self.scene.controllers()], 60)

    def refused(self, pattern: str) -> str:
        """Starts the training, which must end with this answer and change nothing in its folder. Returns the answer."""
        before = contents(self.store)
        said = answer(self.start(), pattern)
        changed = {key for key, _ in contents(self.store).items() ^ before.items()}
        assert not changed, f"changed: {sorted(changed)}"
        return said

    def recorded(self) -> Recorded:
        """The run in MLflow; a deleted one does not count."""
        experiment = self.client.get_experiment_by_name(self.config.tracking.experiment)
        (found,) = self.client.search_runs([experiment.experiment_id], f"tags.`ccnet.run_key` = '{self.config.run_key}'")
        return found

    def check_end(self, undisturbed: Weights, validated: Sequence[int]) -> None:
        """Raises AssertionError unless weights and record are those of a run to which nothing happened."""
        difference = self.scene.weights(self.config).difference(undisturbed)
        assert not difference, f"weights differ by {difference:g}"
        run = self.recorded()
        assert run.info.status == "FINISHED", run.info.status
        for metric, expected in {"train/loss": range(1, self.config.train.steps + 1), "val/miou": validated}.items():
            steps = sorted(point.step for point in self.client.get_metric_history(run.info.run_id, metric))
            assert steps == list(expected), f"MLflow has {metric} of the steps {steps}"
