"""The predicted time and memory of a search."""

from typing import Any, cast

import pytest

from pipeline.tuning.forecast import START_S, Forecast, Speed
from pipeline.tuning.journal import Report, Trial
from pipeline.tuning.rungs import Plan
from tests.pipeline.preflight.test_resources import config

SPACE = {"data.crop_size": {"choice": [65, 129]}, "train.learning_rate": {"log": [0.001, 0.1]}}
SMALL, LARGE = {"data.crop_size": 65}, {"data.crop_size": 129}
PLAN = Plan(4, (100,), 300, 2, True)


class Data:
    """What a forecast reads of a data set."""

    class_names = ("road", "car")

    def num_images(self, split: str) -> int:
        return 10


def forecast(memory_bytes: int = 2**34, **settings: Any) -> Forecast:
    given = {"tune__space": SPACE, "train__workers": 1, "train__validate_every": 50, "train__steps": 300} | settings
    made = config(**given)

    class Search:
        config, manifest = made, Data()

    return Forecast(cast(Any, Search), Speed(1.0, 0.5, memory_bytes), in_process=True, places=1)


def done(number: int, step: int, seconds: float, state: str, point: dict[str, Any]) -> Trial:
    reports = (Report(step, 0.5 - number / 10, seconds),)
    return Trial(f"{number:04d}", point, step, cast(Any, state), "", reports, seconds)


def test_a_stage_has_a_start_its_steps_and_its_validations() -> None:
    assert forecast().stage_s(SMALL, 0, 100) == pytest.approx(START_S[True] + 100 * 1.0 + 2 * 10 * 0.5)
    assert forecast().stage_s(SMALL, 100, 150) == pytest.approx(START_S[True] + 50 * 1.0 + 10 * 0.5)


def test_a_larger_crop_takes_longer_and_another_learning_rate_does_not() -> None:
    assert 3 < forecast().step_s(LARGE) < 4.5
    assert forecast().step_s({"train.learning_rate": 0.5}) == 1.0


def test_before_the_first_trial_all_its_stages_are_counted() -> None:
    settings = {"tune__space": {"train.learning_rate": {"log": [0.001, 0.1]}}}
    stage, rest = START_S[True] + 100 + 10, START_S[True] + 200 + 20
    assert forecast(**settings).left_s([], PLAN) == pytest.approx(4 * stage + 2 * rest)
    seeds = PLAN._replace(seeds=3)
    assert forecast(**settings).left_s([], seeds) == pytest.approx(4 * stage + 2 * rest + 4 * (START_S[True] + 300 + 30))


def test_what_the_trials_have_taken_corrects_the_rest() -> None:
    found = forecast(tune__space={"train.learning_rate": {"log": [0.001, 0.1]}})
    stage, rest = START_S[True] + 100 + 10, START_S[True] + 200 + 20
    half = [done(number, 100, 2 * stage, "paused", {}) for number in range(3)]
    assert found.left_s(half, PLAN) == pytest.approx(2 * (stage + 2 * rest))
    ended = [done(0, 300, stage + rest, "complete", {}), done(1, 300, stage + rest, "complete", {})]
    ended += [done(2, 100, stage, "stopped", {}), done(3, 100, stage, "stopped", {})]
    assert found.left_s(ended, PLAN) == 0


def test_those_that_pass_a_rung_are_taken_to_be_like_the_best_so_far() -> None:
    trials = [done(0, 100, 1.0, "paused", LARGE), done(1, 100, 1.0, "paused", LARGE)]
    trials += [done(2, 100, 1.0, "paused", SMALL), done(3, 100, 1.0, "paused", SMALL)]
    found = forecast()
    corrected = 4.0 / found.spent_s(trials, PLAN)
    assert found.left_s(trials, PLAN) == pytest.approx(corrected * 2 * found.stage_s(LARGE, 100, 300))


def test_those_that_have_passed_a_rung_are_not_counted_for_it_again() -> None:
    trials = [done(0, 300, 1.0, "complete", LARGE), *(done(number, 100, 1.0, "paused", SMALL) for number in (1, 2, 3))]
    found = forecast()
    corrected = 4.0 / found.spent_s(trials, PLAN)
    assert found.left_s(trials, PLAN) == pytest.approx(corrected * found.stage_s(SMALL, 100, 300))


def test_a_point_is_refused_only_if_not_even_one_image_fits() -> None:
    found = forecast()
    one, whole = found.cost(LARGE, images=1).peak_bytes, found.cost(LARGE).peak_bytes
    assert forecast(whole).refusal(LARGE) == ""
    assert forecast(one).refusal(LARGE) == "", "passes of one image fit"
    assert forecast(one - 1).refusal(LARGE).startswith("a step with one image a pass needs ")
    assert forecast(one - 1).refusal(SMALL) == ""
