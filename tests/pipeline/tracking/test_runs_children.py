"""The statuses of a run's children."""

from pathlib import Path

import pytest

from pipeline.tracking import runs
from pipeline.tracking.client import connect
from tests.pipeline.tracking.test_runs import settings


@pytest.mark.slow
def test_children_get_the_status_and_the_reason_that_their_parent_knows(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    parent = runs.open_mlflow_run(settings(uri), environment={}, run_key="search")
    children = {
        key: runs.open_mlflow_run(settings(uri), environment={}, run_key=key, parent_run_id=parent) for key in ("a", "b", "c")
    }
    other = runs.open_mlflow_run(settings(uri), environment={}, run_key="d")
    runs.settle_children(uri, parent, {"a": ("SCHEDULED", ""), "b": ("FINISHED", "stopped early"), "d": ("FAILED", "no child")})

    def ends() -> dict[str, tuple[str, str]]:
        found = {key: connect(uri).get_run(run_id) for key, run_id in (children | {"d": other}).items()}
        return {key: (run.info.status, run.data.tags.get(runs.STOP_REASON, "")) for key, run in found.items()}

    assert ends() == {"a": ("SCHEDULED", ""), "b": ("FINISHED", "stopped early"), "c": ("RUNNING", ""), "d": ("RUNNING", "")}
    assert runs.open_mlflow_run(settings(uri), environment={}, run_key="a", parent_run_id=parent) == children["a"]
    assert ends()["a"] == ("RUNNING", ""), "a stage that begins reopens it"
    runs.end_children(uri, parent, "KILLED")
    assert ends() == {"a": ("KILLED", ""), "b": ("FINISHED", "stopped early"), "c": ("KILLED", ""), "d": ("RUNNING", "")}
