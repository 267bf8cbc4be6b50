"""The records of a search survive their driver, and say so where they cannot be read."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CheckpointError
from pipeline.storage.store import Store
from pipeline.tuning.journal import Journal, Report, Trial
from tests.pipeline.preflight.test_resources import config


def test_another_space_under_the_same_name_is_another_search() -> None:
    spaces: list[dict[str, Any]] = [{"train.momentum": {"uniform": [0.5, 0.9]}}, {"train.momentum": {"uniform": [0.6, 0.9]}}]
    one, other = (config(tune__space=space) for space in spaces)
    assert one.name == other.name
    assert one.search_key != other.search_key
    assert one.search_key == config(tune__space=spaces[0], tune__trials=99).search_key, "more trials extend the search"


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    journal, store = Journal(Store(str(tmp_path))), Store(str(tmp_path))
    assert (journal.trials, journal.facts) == ({}, {})
    trial = Trial("0007", {"data.scale": [0.5, 2.0], "train.learning_rate": 0.1 + 0.2}, 120, "paused", seconds=1.5)
    trial = trial.reported(Report(120, None, 9.0)).reported(Report(60, 0.25, 5.0))
    journal.put(trial)
    journal.put(Trial("0007-seed1", {"seed": 1}, 240, score={"counts": [[1]]}))
    journal.describe(seed=3)
    journal.describe(rungs_wait=True)
    again = Journal(store)
    assert again.trials["0007"] == trial
    assert again.facts == {"seed": 3, "rungs_wait": True}
    assert [found.name for found in again.points()] == ["0007"]
    assert again.trials["0007-seed1"].confirms == "0007"


def test_a_validation_that_is_reported_twice_counts_once() -> None:
    trial = Trial("0000", {}, 10).reported(Report(10, 0.5, 1.0))
    assert trial.reported(Report(10, 0.5, 7.0)) == trial
    assert (trial.at(9), trial.at(10), trial.at(11)) == (0.5, 0.5, None)


@pytest.mark.parametrize(
    "data", [b"{", b'{"number": 7}', b'{"name": "0000", "overrides": {}, "until": 1, "colour": "red"}', b"[]"]
)
def test_a_record_of_another_version_is_named(tmp_path: Path, data: bytes) -> None:
    for name in ("search.json", "trials/0000.json"):
        store = Store(str(tmp_path / name))
        store.write(name, data)
        if name == "trials/0000.json" or not data.endswith(b"}"):  # search.json takes any facts
            with pytest.raises(CheckpointError, match=rf"{name}: is not a record that this version reads .*\(name=\.\.\.\)"):
                Journal(store)
