"""The points of a search follow from seed, number and earlier trials alone."""

import math
import random
from pathlib import Path
from typing import Any

import optuna
import pytest

from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.config.tune import Dimension
from pipeline.errors import ConfigError
from pipeline.tuning.journal import Report, Trial
from pipeline.tuning.points import export_study, importances, num_points, own_point, suggest
from tests.pipeline.preflight.test_resources import config

SPACE: dict[str, Any] = {
    "train.learning_rate": {"log": [0.001, 0.1]},
    "data.crop_size": {"choice": [65, 97]},
    "model.recurrence": {"integer": [1, 3]},
}


def searched(space: dict[str, Any], **tune: Any) -> Config:
    return override(config(), {"tune.space": space} | {f"tune.{name}": value for name, value in tune.items()})


def drawn(settings: Config, trials: int, score: Any = lambda point: 0.5) -> list[Trial]:
    found: list[Trial] = []
    for number in range(trials):
        point = suggest(settings, number, found)
        found.append(Trial(f"{number:04d}", point, 10, "complete", reports=(Report(10, score(point), 1),), miou=score(point)))
    return found


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_starts_again_draws_the_same_points(sampler: str) -> None:
    settings = searched(SPACE, sampler=sampler)
    whole = drawn(settings, 12)
    assert [suggest(settings, number, whole[:number]) for number in range(12)] == [trial.overrides for trial in whole]
    shuffled = searched(dict(reversed(SPACE.items())), sampler=sampler)
    if sampler == "random":
        assert [suggest(shuffled, number, whole[:number]) for number in range(12)] == [trial.overrides for trial in whole]
    assert whole[1].overrides != suggest(override(settings, {"seed": 7}), 1, [])


def test_a_point_that_could_not_train_is_the_worst_for_the_next_ones() -> None:
    settings = searched({"data.crop_size": {"choice": [65, 97]}, "train.momentum": {"uniform": [0.0, 0.9]}}, sampler="tpe")
    trials = [Trial(f"{n:04d}", {"data.crop_size": 97, "train.momentum": n / 10}, 10, "refused", "too large") for n in range(6)]
    scored = [{"data.crop_size": 65, "train.momentum": n / 10} for n in range(4)]
    trials += [Trial(f"{n + 6:04d}", point, 10, "complete", miou=0.5) for n, point in enumerate(scored)]
    drawn_next = [suggest(override(settings, {"seed": seed}), 10, trials)["data.crop_size"] for seed in range(20)]
    assert drawn_next.count(65) > 15


def test_a_search_is_exported_as_a_study_of_optuna(tmp_path: Path) -> None:
    settings = searched(SPACE | {"data.scale": {"choice": [[0.5, 1.0], [1.0, 1.0]]}})
    trials = drawn(settings, 5, lambda point: 1 / point["model.recurrence"])
    trials[3] = trials[3]._replace(state="stopped")
    seed = trials[0]._replace(name="0000-seed1")
    file = tmp_path / "study.db"
    export_study(settings, [*trials, seed], file, "search")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{file}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3 + ["PRUNED", "COMPLETE"]
    assert study.trials[0].params["model.recurrence"] == 2
    assert study.trials[0].params["data.scale"] == "[1.0, 1.0]"
    assert study.best_value == max(trial.miou or 0 for trial in trials if trial.state == "complete")
    with pytest.raises(ConfigError, match="exists already"):
        export_study(settings, trials, file, "search")
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
    with pytest.raises(ConfigError, match="there is no folder"):
        export_study(settings, trials, tmp_path / "none" / "study.db", "search")


def test_the_first_trial_is_the_configuration_itself_if_it_lies_in_the_space() -> None:
    first = suggest(searched(SPACE), 0, [])
    assert first == {"train.learning_rate": config().train.learning_rate, "data.crop_size": 65, "model.recurrence": 2}
    assert own_point(searched({"data.crop_size": {"choice": [97, 129]}})) is None
    assert own_point(searched({"train.learning_rate": {"uniform": [1.0, 2.0]}})) is None
    assert own_point(searched({"data.crop_size": {"choice": [[65, 65]]}})) == {"data.crop_size": [65, 65]}


def test_a_point_is_drawn_once_while_there_are_others() -> None:
    settings = searched({"data.crop_size": {"choice": [65, 97, 129]}, "model.recurrence": {"choice": [1, 2]}})
    points = [tuple(trial.overrides.values()) for trial in drawn(settings, 6)]
    assert len(set(points)) == 6
    assert len(drawn(settings, 7)) == 7


def test_a_grid_is_tried_whole_and_as_often_as_asked() -> None:
    settings = searched(
        {"model.recurrence": {"grid": [0, 1]}, "seed": {"grid": [5, 6]}, "data.crop_size": {"choice": [65, 97]}}, trials=2
    )
    assert num_points(settings) == 8
    points = [trial.overrides for trial in drawn(settings, 8)]
    assert [(point["model.recurrence"], point["seed"]) for point in points] == 2 * [(0, 5), (0, 6), (1, 5), (1, 6)]


CONDITIONAL: dict[str, Any] = {
    "model.gamma_init": {"uniform": [0.0, 1.0], "when": {"model.recurrence": [1, 2]}},
    "model.recurrence": {"choice": [0, 1, 2]},
    "train.learning_rate": {"log": [0.001, 0.1]},
}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_setting_with_a_condition_is_searched_only_where_it_matters(sampler: str, tmp_path: Path) -> None:
    settings = searched(CONDITIONAL, sampler=sampler)
    trials = drawn(settings, 24, lambda point: point["train.learning_rate"] + point.get("model.gamma_init", 0) / 10)
    points = [trial.overrides for trial in trials]
    assert {(point["model.recurrence"] > 0, "model.gamma_init" in point) for point in points} == {(True, True), (False, False)}
    assert set(importances(settings, trials, 10)) == {"model.recurrence", "train.learning_rate"}
    export_study(settings, trials, tmp_path / "study.db", "search")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [set(trial.params) for trial in study.trials] == [set(point) for point in points]


def test_the_configuration_itself_may_lie_outside_of_what_does_not_matter_for_it() -> None:
    outside = {"uniform": [0.5, 1.0], "when": {"model.recurrence": [1]}}
    settings = searched(CONDITIONAL | {"model.gamma_init": outside})
    assert own_point(settings) == {"model.recurrence": 2, "train.learning_rate": config().train.learning_rate}
    assert own_point(searched(CONDITIONAL | {"model.gamma_init": outside | {"when": {"model.recurrence": [2]}}})) is None


def test_a_condition_names_another_searched_setting() -> None:
    for when, message in (
        ({"model.backbone": ["small"]}, "is no other setting of the space"),
        ({"seed": [1]}, "try one of seed"),
    ):
        with pytest.raises(ConfigError, match=message):
            searched({"seed": {"choice": [1, 2], "when": when}})
    with pytest.raises(ConfigError, match="when: not with grid"):
        searched({"seed": {"grid": [1, 2], "when": {"model.recurrence": [1]}}, "model.recurrence": {"choice": [1, 2]}})


def test_every_kind_of_dimension_draws_what_it_holds() -> None:
    generator = random.Random(0)
    values = [Dimension(log=(0.01, 1.0)).draw(generator) for _ in range(200)]
    assert all(0.01 <= value <= 1 for value in values)
    assert 80 < sum(value < 0.1 for value in values) < 120
    assert all(-1 <= Dimension(uniform=(-1, 3)).draw(generator) <= 3 for _ in range(50))
    assert {Dimension(integer=(1, 3)).draw(generator) for _ in range(50)} == {1, 2, 3}
    assert Dimension(integer=(1, 4)).examples() == (1, 4, 2)
    assert Dimension(uniform=(0, 1)).examples() == (0, 1, 0.5)
    for wrong in ({"integer": (3, 1)}, {"uniform": (1, 1)}):
        with pytest.raises(ValueError, match="needs low < high"):
            Dimension.model_validate(wrong)


def test_a_grid_needs_values_and_a_dimension_one_kind() -> None:
    assert Dimension(grid=(0, 1)).examples() == (0, 1)
    for wrong in ({"grid": (0,), "choice": (1,)}, {}):
        with pytest.raises(ValueError, match=r"exactly one of log: .*, choice: .* and grid: "):
            Dimension.model_validate(wrong)
    with pytest.raises(ValueError, match=r"grid = \[\]: needs at least one value"):
        Dimension(grid=())


def test_tpe_finds_a_known_peak_closer_than_random_points_do() -> None:
    """A cheap surface with one peak, at learning rate 0.03 and crops of 97; ten seeds, 24 trials each.

    The comparison is of the mean distance to the peak, so one lucky draw does not decide.
    """

    def score(point: dict[str, Any]) -> float:
        return math.exp(-(math.log(point["train.learning_rate"] / 0.03) ** 2)) - 0.2 * (point["data.crop_size"] != 97)

    def best(sampler: str) -> float:
        found = [drawn(override(searched(SPACE, sampler=sampler), {"seed": seed}), 24, score) for seed in range(10)]
        return sum(max(trial.miou or 0 for trial in trials) for trials in found) / len(found)

    assert best("tpe") > best("random")


def test_the_setting_that_decides_has_the_largest_share() -> None:
    settings = searched(SPACE)
    trials = drawn(settings, 24, lambda point: -abs(math.log(point["train.learning_rate"] / 0.01)))
    found = importances(settings, trials, 10)
    assert max(found, key=lambda key: found[key]) == "train.learning_rate"
    assert sum(found.values()) == pytest.approx(1)
    assert importances(settings, trials[:7], 10) == {}, "too few trials"
    assert importances(settings, drawn(settings, 9), 10) == {}, "equal scores"
