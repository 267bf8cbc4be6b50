"""`jobs.sync` of a search: MLflow gets what its trials have left, and every status becomes that of the records, without Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import ray
from mlflow import MlflowClient

from jobs import sync as verb
from pipeline.config.load import override
from pipeline.data.manifest import read_manifest
from pipeline.errors import LeaseError, TrackingError
from pipeline.evaluation.metrics import Score
from pipeline.evaluation.protocol import validation_protocol
from pipeline.storage.lease import Claim
from pipeline.storage.store import open_store
from pipeline.tracking import runs
from pipeline.training.checkpointing import RunRecord
from pipeline.training.run import Run
from pipeline.tuning.journal import Journal, Report, State, Trial
from pipeline.tuning.progress import INTERRUPTED
from pipeline.tuning.sync import UNFINISHED, sync
from pipeline.tuning.trials import trial_config, trial_store
from tests.pipeline.training.test_sync import EACH_ONCE, POINTS, leave_points, losses
from tests.support import untrained
from tests.support.holder import holder
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow
RATES = (0.01, 0.02, 0.03)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


class Search:
    """A search whose driver was killed. Each trial has trained and validated one step, of which no point has reached MLflow."""

    def __init__(self, folder: Path, uri: str, states: Sequence[State], steps: int = 1) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.config = override(untrained.make(folder / "storage", self.scratch), {
            "train.steps": steps, "tracking.uri": uri, "tracking.experiment": folder.name, "tracking.log_model": False,
            "tracking.register_as": folder.name, "tune.space": {"train.learning_rate": {"grid": RATES[: len(states)]}},
            "tune.trials": 1,
        })  # fmt: skip
        self.key = self.config.search_key
        store = open_store(f"{self.config.runs_url}/{self.key}", self.config.storage)
        manifest = read_manifest(open_store(self.config.data_url, self.config.storage))
        run_id = runs.open_mlflow_run(self.config, environment={}, run_key=self.key)
        self.parent = Run(self.config, manifest, store, uri, run_id, Claim(store, ""))
        self.journal = Journal(store)
        self.journal.describe(key=self.key, rungs_wait=True, threads=1)
        self.trials = [self._trial(f"{number:04d}", state) for number, state in enumerate(states)]

    def _trial(self, name: str, state: State) -> Run:
        overrides = {"train.learning_rate": RATES[int(name)]}
        made, run_key = trial_config(self.config, overrides), f"{self.key}-{name}"
        run_id = runs.open_mlflow_run(made, environment={}, run_key=run_key, parent_run_id=self.parent.run_id)
        run = self.parent._replace(config=made, checkpoints=trial_store(made, self.key, name), run_id=run_id)
        k, right = len(run.manifest.class_names), int(name) + 1
        counts = [[right if i == j else 1 for i in range(k)] for j in range(k)]
        score = Score(counts, run.manifest.class_names, 10, validation_protocol(made, run.manifest), [[1] * k] * 2)
        own = override(made, {"train.resume": run_key})
        untrained.store_checkpoint(own, self.scratch, score=score._asdict(), record=RunRecord().json())
        leave_points(run)
        reports = () if state in ("failed", "running") else (Report(1, score.miou, 1.0),)
        known = cast(Any, {"run_id": run_id, "miou": score.miou}) if reports else {}
        reason = "no class is left" if state == "failed" else ""
        self.journal.put(Trial(name, overrides, 1, state, reason, reports, **known))
        return run

    def ends(self) -> list[tuple[str, str]]:
        """Status and reason in MLflow of the search and of each trial."""
        found = [MlflowClient(run.tracking_uri).get_run(run.run_id) for run in (self.parent, *self.trials)]
        return [(run.info.status, run.data.tags.get(runs.STOP_REASON, "")) for run in found]


def test_a_complete_search_whose_driver_died_is_recorded_without_ray(
    mlflow_server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Search(tmp_path, mlflow_server.uri, ("complete", "complete"))
    assert search.ends() == [("RUNNING", "")] * 3
    assert verb.run(search.config) == 0
    shown = capsys.readouterr().out
    for name in ("0000", "0001"):
        assert f"trial {name}        {POINTS} metric points, 1 pictures; 1 refused; RUNNING -> FINISHED\n" in shown
    assert f"sent              {2 * POINTS} metric points, 2 pictures\n" in shown
    assert "refused           metric no?: " in shown
    assert f"2 points and pictures, kept in {search.config.runs_url}/{search.key}*/metrics\n" in shown
    assert "status            RUNNING -> FINISHED\n" in shown
    assert search.ends() == [("FINISHED", "")] * 3
    assert [losses(trial) for trial in search.trials] == [EACH_ONCE] * 2
    client = MlflowClient(mlflow_server.uri)
    parent, winner = (client.get_run(run.run_id) for run in (search.parent, search.trials[1]))
    assert parent.data.tags["ccnet.checkpoint_url"].startswith(search.trials[1].checkpoints.url(""))
    (version,) = client.search_model_versions(f"run_id = '{winner.info.run_id}'")
    assert version.tags["ccnet.checkpoint_sha256"] == parent.data.tags["ccnet.checkpoint_sha256"]
    files = {file.path for file in client.list_artifacts(search.parent.run_id)}
    assert {"report.html", "winner.yaml", "search.png", "search_settings.png"} <= files
    assert b"trial 0001, the best of 2</h1>" in search.parent.checkpoints.read("report.html")

    assert verb.run(search.config) == 0
    shown = capsys.readouterr().out
    assert "trial 0000        1 refused\n" in shown
    assert "sent              nothing was left\n" in shown
    assert "status            FINISHED\n" in shown
    assert [losses(trial) for trial in search.trials] == [EACH_ONCE] * 2
    assert not ray.is_initialized()


def test_a_search_that_is_not_complete_is_not_running_if_nobody_runs_it(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    search = Search(tmp_path, mlflow_server.uri, ("paused", "failed", "running"), steps=200)
    MlflowClient(mlflow_server.uri).delete_run(search.trials[0].run_id)
    found = sync(search.config)
    assert found.without_run == ["0000"]
    assert {name: trial.status for name, trial in found.trials.items()} == {"0001": "FAILED", "0002": "KILLED"}
    assert (found.whole.before, found.whole.status) == ("RUNNING", "KILLED")
    assert search.ends() == [("KILLED", UNFINISHED), ("RUNNING", ""), ("FAILED", "no class is left"), ("KILLED", INTERRUPTED)]
    assert losses(search.trials[2]) == EACH_ONCE
    states = {name: trial.state for name, trial in Journal(search.parent.checkpoints).trials.items()}
    assert states == {"0000": "paused", "0001": "failed", "0002": "running"}, "the search resumes as before"
    assert not search.parent.checkpoints.exists("report.html")


def test_a_search_of_which_all_trials_failed_has_failed(
    mlflow_server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    search = Search(tmp_path, mlflow_server.uri, ("failed",))
    assert sync(search.config).whole.status == "FAILED"
    reason = "all 1 trials failed; the first: no class is left"
    assert search.ends() == [("FAILED", reason), ("FAILED", "no class is left")]
    assert reason in caplog.text


def test_a_search_that_another_process_runs_is_refused_and_one_that_is_not_there_named(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    search = Search(tmp_path, mlflow_server.uri, ("complete",))
    with (
        holder(search.parent.checkpoints.root) as driver,
        pytest.raises(LeaseError, match=f"in use by process {driver.pid} on host"),
    ):
        sync(search.config)
    assert search.ends() == [("RUNNING", "")] * 2

    MlflowClient(mlflow_server.uri).delete_run(search.parent.run_id)
    with pytest.raises(TrackingError, match=r"MLflow has no run of it \(deleted, or another server\); python -m jobs.tune"):
        sync(search.config)
    with pytest.raises(TrackingError, match=r"no such search, in MLflow or in .*; python -m jobs.tune starts it"):
        sync(override(search.config, {"name": "other"}))
