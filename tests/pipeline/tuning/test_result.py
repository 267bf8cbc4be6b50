"""The table of a search, its cost, its winner, and the line that reproduces it."""

import re
import shlex

from pipeline.config.load import load
from pipeline.evaluation.metrics import Score
from pipeline.tuning.journal import Report, Trial
from pipeline.tuning.result import Cost, SearchResult, best_for_cost, confirmed, ranked

SCORE = Score([[2, 1], [0, 2]], ("road", "car"), 1, {}, [[2, 1], [0, 2]], (0.4, 0.6), gamma=1.5, attention_off_miou=0.25)


def trial(name: str, miou: float | None, step: int = 10, state: str = "complete", **others: object) -> Trial:
    return Trial(name, {"seed": int(name[:4])}, step, state, reports=(Report(step, miou, 1.0),), miou=miou, **others)  # type: ignore[arg-type]


def result(*trials: Trial) -> SearchResult:
    return SearchResult("run", "uri", list(trials), 10, SCORE, "model", "report")


def test_a_search_that_evaluates_shows_interval_gamma_and_the_score_without_attention() -> None:
    lines = result(trial("0000", 0.5, score=SCORE._asdict()), trial("0001", 0.4, 5, "stopped")).table().splitlines()
    assert lines[0].split()[-4:] == ["interval", "attention", "off", "gamma"]
    assert re.search(r"complete +0\.4000 to 0\.6000 +0\.2500 +1\.5000", lines[1])
    assert re.search(r"stopped early +- +- +-", lines[2])


def test_the_line_that_reproduces_the_best_gives_its_settings() -> None:
    values = {
        "data.source": "/data/my set #1",
        "train.learning_rate": 0.02,
        "model.backbone": "resnet34",
        "data.scale": [0.5, 2.0],
    }
    found = result(trial("0000", 0.5, caveat="over 1 of 2 classes")._replace(overrides=values))
    assert "  0.5000 over 1 of 2 classes  " in found.table()
    config = load("jobs/configs/demo.yaml", shlex.split(found.table().splitlines()[-1]))
    assert (config.data.source, config.train.learning_rate) == ("/data/my set #1", 0.02)
    assert (config.model.backbone, config.data.scale) == ("resnet34", (0.5, 2.0))


def test_a_score_that_is_not_a_number_comes_last() -> None:
    trials = [trial("0000", None), trial("0001", 0.1), trial("0002", 0.3)]
    assert [each.name for each in ranked(trials)] == ["0002", "0001", "0000"]


def test_a_score_that_something_speaks_against_comes_after_the_others() -> None:
    trials = [trial("0000", 0.9, caveat="over 5 of 6 classes"), trial("0001", 0.4)]
    assert [each.name for each in ranked(trials)] == ["0001", "0000"]


def test_with_several_seeds_the_mean_decides() -> None:
    trials = [trial("0000", 0.9), trial("0001", 0.8), trial("0000-seed1", 0.5), trial("0001-seed1", 0.8), trial("0002", 0.85)]
    assert [(point.name, round(point.mean, 4)) for point in confirmed(trials)] == [("0001", 0.8), ("0000", 0.7)]
    assert [each.name for each in ranked(trials)][:2] == ["0001", "0000"]
    # Student's t for two values: half the difference x 12.706
    assert "trial 0000: mIoU 0.7000 +- 2.5412 (95 %, t, 2 seeds: 0.9000, 0.5000)" in result(*trials).table()


def test_a_point_whose_other_seeds_are_not_complete_is_not_confirmed() -> None:
    trials = [trial("0000", 0.9), trial("0000-seed1", 0.5), trial("0000-seed2", None, 5, "running")]
    assert confirmed(trials) == []


def test_the_cost_counts_each_step_once_and_the_time_of_start_and_end() -> None:
    trials = [trial("0000", 0.9, seconds=60.0, trained_s=45.0), trial("0001", 0.5, 4, "stopped", seconds=20.0, trained_s=11.0)]
    cost = Cost.of([*trials, trial("0002", 0.1, 4, "paused")], 10)
    assert (cost.steps, cost.saved) == (18, 6), "what waits or is unfinished has saved nothing yet"
    assert str(Cost.of(trials, 10)) == (
        "14 steps trained, 30 % saved by stopping early; 1.3 min of trials, 30 % of it in starting and stopping"
    )


def test_a_failed_trial_is_named_with_its_reason() -> None:
    failed = trial("0001", None, 0, "failed", reason="ValueError: no such class")
    assert "trial 0001 failed: ValueError: no such class" in result(trial("0000", 0.9), failed).table()


def test_the_trials_that_are_the_best_for_their_cost_are_named() -> None:
    trials = [
        trial("0000", 0.8, gflop=4.0),
        trial("0001", 0.9, gflop=6.0),
        trial("0002", 0.7, gflop=5.0),
        trial("0003", 0.6, gflop=2.0),
    ]
    trials += [trial("0004", 0.99, 5, "stopped", gflop=1.0), trial("0005", 0.8, gflop=4.0), trial("0006", None, gflop=0.5)]
    assert [each.name for each in best_for_cost(trials)] == ["0003", "0000", "0001"]
    assert (
        "training image: 0003 (mIoU 0.6000 for 2), 0000 (mIoU 0.8000 for 4), 0001 (mIoU 0.9000 for 6)" in result(*trials).table()
    )
    assert result(*trials).table().splitlines()[0].split()[-1] == "GFLOP"
    assert "GFLOP" not in result(trial("0000", 0.8)).table()
