"""Real runs whose checkpoints are validated in place, later or in the background: each time the same to the last digit."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import ray
from mlflow import MlflowClient

from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.files import SCORE
from pipeline.config.config import Config
from pipeline.config.load import load, override
from pipeline.data.prepare import prepare
from pipeline.errors import RunFailed
from pipeline.fault_tolerance.interruptions import StopFlag
from pipeline.training.run import Run, open_run
from pipeline.training.train import STOPPED, build_trainer, run_to_end, stop_reason, validate_pending
from pipeline.training.validation import background_validation
from tests.support.checkpoints import equal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

DEMO = Path(__file__).parents[3] / "jobs" / "configs" / "demo.yaml"
TINY = [
    "data.name=tiny", "data.crop_size=33", "data.generated={num_train: 16, num_val: 3, size: 33}", "train.global_batch=4",
    "train.workers=1", "train.steps=12", "train.validate_every=4", "train.keep_checkpoints=9", "train.cpus_per_worker=0.5",
    "tracking.register_as=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))  # the folder of metrics that are not sent yet
        config = load(DEMO, [*TINY, f"storage.path={folder}/out", f"tracking.uri=sqlite:///{folder}/mlflow.db"])
        prepare(config)
        yield config


class Left(NamedTuple):
    """A run, and the progress that each of its checkpoints records: step -> progress."""

    run: Run
    progress: dict[int, dict[str, Any]]

    @property
    def given_later(self) -> list[int]:
        """Steps of the checkpoints that were scored after they were stored."""
        return [step for step in self.progress if self.run.checkpoints.exists(f"{checkpoint.folder_name(step)}/{SCORE}")]

    def logged(self) -> dict[int, float]:
        """Step -> mIoU in MLflow."""
        history = MlflowClient(self.run.tracking_uri).get_metric_history(self.run.run_id, "val/miou")
        return {point.step: point.value for point in history}


def left(run: Run) -> Left:
    names = sorted({key.split("/")[0] for key in run.checkpoints.list() if key.startswith("step-")})
    found = [checkpoint.load(run.checkpoints, name) for name in names]
    return Left(run, {each.step: each.progress for each in found})


@pytest.fixture(scope="module")
def stopped(tiny: Config) -> Iterator[Left]:
    """A run with background validation that is stopped on request after step 8."""
    with open_run(override(tiny, {"evaluate.background": True, "faults.look_every": 8})) as run:
        flag = cast(Any, StopFlag).remote()
        ray.get(flag.request.remote(STOPPED))
        assert run_to_end(run._replace(stop_flag=flag)) == STOPPED
        yield left(run)


@pytest.fixture(scope="module")
def ended(tiny: Config, stopped: Left) -> Left:
    """The same run, resumed with validation in place until its budget is spent after step 10."""
    run = stopped.run._replace(config=override(tiny, {"stop.hours": 1e-9, "faults.look_every": 10}))
    build_trainer(run).fit()
    assert stop_reason(run) == "stop.hours = 1e-09 are spent: a larger value resumes the run"
    return left(run)


@pytest.fixture(scope="module")
def finished(tiny: Config, ended: Left) -> Left:
    """The same run, resumed again with background validation to its last step."""
    run = ended.run._replace(config=override(tiny, {"evaluate.background": True}))
    build_trainer(run).fit()
    return left(run)


@pytest.fixture(scope="module")
def often(tiny: Config) -> Iterator[Left]:
    """A run of the same settings that stores every third step too, and keeps two checkpoints."""
    settings = {"name": "often", "train.checkpoint_every": 3, "train.keep_checkpoints": 2}
    with open_run(override(tiny, settings)) as run:
        assert run_to_end(run) is None
        yield left(run)


def test_a_run_stopped_on_request_ends_without_a_score(stopped: Left) -> None:
    assert (list(stopped.progress), stopped.given_later, stopped.logged()) == ([4, 8], [], {})
    assert (stopped.progress[8]["score"], stopped.progress[8]["interrupted"]) == (None, STOPPED)


def test_a_pending_validation_comes_first_and_a_spent_budget_ends_with_a_score(ended: Left) -> None:
    assert list(ended.progress) == [4, 8, 10]
    assert ended.given_later == [8]
    mious = {step: ended.progress[step]["metrics"]["miou"] for step in (8, 10)}
    assert ended.logged() == mious
    assert ended.progress[10]["record"]["best"] == mious[8]  # patience counts validations in place


def test_in_the_background_pending_checkpoints_get_their_score_and_pictures(finished: Left) -> None:
    mious = {step: progress["metrics"]["miou"] for step, progress in finished.progress.items()}
    assert list(mious) == [4, 8, 10, 12]
    assert finished.given_later == [4, 8, 12]
    assert finished.logged() == mious
    client, run_id = MlflowClient(finished.run.tracking_uri), finished.run.run_id
    for name in ("panel", "attention", "confusion_matrix"):
        found = [Path(file.path).stem for file in client.list_artifacts(run_id, name)]
        assert found == [f"step_{step:06d}" for step in mious]


def test_the_end_validates_pending_checkpoints_with_the_same_score(finished: Left, caplog: pytest.LogCaptureFixture) -> None:
    run, store = finished.run, finished.run.checkpoints
    for step in (4, 8):  # step 8 was validated by the workers in place
        store.delete(f"{checkpoint.folder_name(step)}/{SCORE}")
    model = f"step-000004/{checkpoint.MODEL}"
    whole = store.read(model)
    store.write(model, whole[:-1] + bytes([whole[-1] ^ 1]))
    validate_pending(run)
    assert checkpoint.unscored(store) == [4]  # this checkpoint does not verify
    store.write(model, whole)
    without_data = run._replace(config=override(run.config, {"storage.path": f"{run.config.storage.path}/nothing"}))
    reported = ray.train.Checkpoint(store.url("step-000004"))
    with caplog.at_level(logging.WARNING):
        assert background_validation(without_data).fn(reported) == {}
    assert "step-000004 is not validated yet, training continues: " in caplog.text
    assert checkpoint.unscored(store) == [4]
    assert background_validation(run).fn(reported) == {}
    assert left(run).progress == finished.progress


def test_checkpoints_between_validations_have_no_score_and_go_first(often: Left) -> None:
    best = max(often.progress, key=lambda step: (checkpoint.miou(often.progress[step]) or 0, step))
    assert list(often.progress) == sorted({9, 12, best})  # step 9 without a score
    assert often.progress[9]["score"] is None
    assert often.progress[12]["environment"] == often.run.environment


def test_the_weights_do_not_depend_on_when_checkpoints_are_stored(often: Left, finished: Left) -> None:
    """Nor on interruptions: one run stored every third step, the other one was resumed at steps 8 and 10."""
    one, other = (checkpoint.load(made.run.checkpoints, "step-000012") for made in (often, finished))
    assert equal(one.model, other.model)
    assert equal(one.optimizer, other.optimizer)


def test_workers_that_never_find_room_end_the_run(stopped: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "0.5")
    crowded = {"train.workers": 4, "train.cpus_per_worker": 1, "faults.max_failures": 0}
    run = stopped.run._replace(config=override(stopped.run.config, crowded))
    never = r"(?s)timed out after .* waiting for 4 workers.*not retried: faults.max_failures = 0"
    with pytest.raises(RunFailed, match=never):
        run_to_end(run._replace(checkpoints=run.checkpoints.join("crowded")))
