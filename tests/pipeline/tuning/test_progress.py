"""What the driver of a search remembers between events: hours, seeds, failures in a row."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.model.cost import StepCost
from pipeline.storage import lease
from pipeline.storage.store import Store
from pipeline.training.run import Run
from pipeline.tuning.journal import Journal
from pipeline.tuning.progress import Progress, open_journal, plan_of
from pipeline.tuning.rungs import Stage
from tests.pipeline.preflight.test_resources import config


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def parent(store: Store) -> Iterator[Run]:
    with lease.held(store) as claim:
        yield Run(config(tune__space={"model.recurrence": {"choice": [1, 2]}}), cast(Any, None), store, "", "", claim)


def progress(parent: Run, **settings: Any) -> Progress:
    made = parent._replace(config=config(tune__space=parent.config.tune.space, **settings))
    return Progress(made, "key", Journal(parent.checkpoints), plan_of(made.config, waits=True), lambda progress: None)


def test_the_hours_of_all_attempts_count_and_a_larger_number_resumes(parent: Run, store: Store) -> None:
    assert progress(parent).exhausted() is None
    Journal(store).describe(spent_s=7200.0)
    assert progress(parent, tune__hours=2.0).exhausted() == "tune.hours = 2 are spent: a larger value resumes the search"
    assert progress(parent, tune__hours=2.1).exhausted() is None


def test_another_seed_trains_the_same_point(parent: Run) -> None:
    search = progress(parent, seed=5, tune__confirm_seeds=3)
    own = search.begin(Stage("0000", 10))
    other = search.begin(Stage("0000-seed2", 20))
    assert other.overrides == own.overrides | {"seed": 7}
    assert (other.confirms, search.plan.seeds) == ("0000", 3)


def test_a_fault_that_may_pass_is_tried_again_until_too_many_in_a_row(parent: Run, store: Store) -> None:
    search, away = progress(parent), {"fault": "MLflow is away", "again": True}
    for count in (1, 2):
        search.begin(Stage("0000", 10))
        assert search.end("0000", away) == count
    search.begin(Stage("0000", 10))
    search.report("0000", 5, 0.5, "")
    assert search.end("0000", away) == 1, "a validation ends the row"
    assert search.next_stage(()) == Stage("0000", 10)
    for _ in range(3):
        search.begin(Stage("0000", 10))
        count = search.end("0000", away)
    assert count == 0
    assert Journal(store).trials["0000"].state == "failed"
    assert open_journal(parent).trials["0000"].state == "running", "the same command tries it again"


class Broken:
    """A forecast that cannot count."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"cannot count {name}")


class Full:
    """A forecast for a device without room."""

    def refusal(self, overrides: dict[str, Any]) -> str:
        return "too large" if overrides["model.recurrence"] == 2 else ""

    def stage_s(self, overrides: dict[str, Any], start: int, end: int) -> float:
        return 100.0

    def cost(self, overrides: dict[str, Any]) -> StepCost:
        return StepCost(1, 2**20)

    def gflop(self, overrides: dict[str, Any]) -> float:
        return 1.25


def test_a_forecast_that_fails_does_not_end_the_search(parent: Run, caplog: pytest.LogCaptureFixture) -> None:
    search = progress(parent)
    search.forecast = cast(Any, Broken())
    assert search.expected() == ""
    search.forecast = cast(Any, Broken())
    assert search.begin(Stage("0000", 10)) is not None
    assert "no forecast any more: RuntimeError: cannot count stage_s" in caplog.text
    assert search.forecast is None


def test_a_trial_that_cannot_fit_is_not_trained_and_tried_again_by_the_next_start(
    parent: Run, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    search = progress(parent, tune__trials=2)
    search.forecast = cast(Any, Full())
    assert search.begin(Stage("0000", 10)) is None, "the configuration itself has R = 2"
    assert (search.journal.trials["0000"].state, search.journal.trials["0000"].reason) == ("refused", "too large")
    stage = search.next_stage(())
    assert stage is not None
    assert stage.name == "0001"
    assert search.begin(stage) is not None
    assert f"trial 0001  from step 0 to {stage.until}  model.recurrence=1  (about 2 min, 1 MiB)" in caplog.text
    assert open_journal(parent).trials["0000"].state == "running"


def test_a_driver_that_was_replaced_writes_nothing(parent: Run, store: Store) -> None:
    search = progress(parent)
    store.write(lease.LEASE, b'{"id": "other"}')
    with pytest.raises(lease.LeaseError, match="taken over by another process"):
        search.begin(Stage("0000", 10))
    assert Journal(store).trials == {}
