"""The settings of trials, how many run at a time, and the line that reproduces the best."""

import re
import shlex

import pytest

from pipeline.config.load import load
from pipeline.config.tune import Dimension
from pipeline.evaluation.metrics import Score
from pipeline.tuning.trials import Trial, concurrent_trials, domain, trial_config
from pipeline.tuning.tune import SearchResult
from tests.pipeline.preflight.test_resources import config, elastic


def test_a_trial_of_an_elastic_configuration_has_the_fewest_workers() -> None:
    trial = trial_config(elastic(1, 4), {"train.learning_rate": 0.05})
    assert (trial.train.workers, trial.train.learning_rate) == (1, 0.05)
    assert trial.run_key == trial_config(config(), {"train.learning_rate": 0.05}).run_key  # the number of workers is not in it


def test_a_trial_is_validated_in_place() -> None:
    assert not trial_config(config(evaluate__background=True), {}).evaluate.background


def test_as_many_trials_run_at_a_time_as_fit_with_the_fewest_workers() -> None:
    assert concurrent_trials(elastic(1, 8), {"CPU": 16}) == 10  # each takes half a CPU, and two halves for its data
    assert concurrent_trials(elastic(1, 8), {"CPU": 16, "GPU": 4}) == 4


def test_trials_at_a_time_follow_cpus_and_gpus() -> None:
    assert concurrent_trials(config(), {"CPU": 2}) == 1
    assert concurrent_trials(config(), {"CPU": 16}) == 8
    assert concurrent_trials(config(), {"CPU": 16, "GPU": 4}) == 2
    assert concurrent_trials(config(), {"CPU": 1}) == 1


def test_a_search_that_evaluates_shows_interval_gamma_and_the_score_without_attention() -> None:
    score = Score([[2, 1], [0, 2]], ("road", "car"), 1, {}, [[2, 1], [0, 2]], (0.4, 0.6), gamma=1.5, attention_off_miou=0.25)
    trials = [Trial("0", {"seed": 0}, 0.5, "", 10, False, "run", score), Trial("1", {"seed": 1}, 0.4, "", 5, True, "run")]
    lines = SearchResult("run", "uri", trials, score, "model").table().splitlines()
    assert lines[0].split()[-4:] == ["interval", "attention", "off", "gamma"]
    assert re.search(r"complete +0\.4000 to 0\.6000 +0\.2500 +1\.5000", lines[1])
    assert re.search(r"stopped early +- +- +-", lines[2])


def test_a_grid_is_tried_whole() -> None:
    assert domain(Dimension(grid=(0, 1))) == {"grid_search": [0, 1]}
    assert Dimension(grid=(0, 1)).examples() == (0, 1)
    for wrong in ({"grid": (0,), "choice": (1,)}, {}):
        with pytest.raises(ValueError, match=r"exactly one of log: .*, choice: .* and grid: "):
            Dimension.model_validate(wrong)
    with pytest.raises(ValueError, match=r"grid = \[\]: needs at least one value"):
        Dimension(grid=())


def test_the_line_that_reproduces_the_best_gives_its_settings() -> None:
    values = {
        "data.source": "/data/my set #1",
        "train.learning_rate": 0.02,
        "model.backbone": "resnet34",
        "data.scale": [0.5, 2.0],
    }
    score = Score([[2, 1], [0, 2]], ("road", "car"), 1, {}, [[2, 1], [0, 2]])
    found = SearchResult("run", "uri", [Trial("0", values, 0.5, "over 1 of 2 classes", 10, False, "run")], score, "model")
    assert "  0.5000 over 1 of 2 classes  " in found.table()
    config = load("jobs/configs/demo.yaml", shlex.split(found.table().splitlines()[-1]))
    assert (config.data.source, config.train.learning_rate) == ("/data/my set #1", 0.02)
    assert (config.model.backbone, config.data.scale) == ("resnet34", (0.5, 2.0))
