"""Successive halving as a function of the records: the textbook's result under every order of events, and Tune's cutoff."""

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from pipeline.config.load import override
from pipeline.tuning.journal import Report, Trial
from pipeline.tuning.rungs import Plan, left_behind, next_stage, rungs, survivors
from tests.pipeline.preflight.test_resources import config

Score = Callable[[str, int], float]
PLANS = st.builds(
    lambda trials, steps, reduction, seeds: Plan(trials, steps[:-1], steps[-1], reduction, True, seeds),
    st.integers(1, 9),
    st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True).map(lambda steps: tuple(sorted(steps))),
    st.integers(2, 4),
    st.integers(1, 3),
)


def score(name: str, step: int) -> float:
    """Any score, always the same one for the same trial and step."""
    return random.Random(f"{name}/{step}").random()


def trained(plan: Plan, order: random.Random, places: int = 1, kills: float = 0.0, fails: str = "") -> dict[str, Trial]:
    """The trials of a search whose stages end in any order, and whose driver may be killed at any moment."""
    trials: dict[str, Trial] = {}
    live: set[str] = set()
    while True:
        while len(live) < places and (stage := next_stage(sorted(trials.values()), live, plan)):
            assert stage.name not in live
            trial = trials.get(stage.name, Trial(stage.name, {}, stage.until))
            assert not trial.reached(stage.until), "trained twice"
            trials[stage.name] = trial._replace(state="running", until=stage.until)
            live.add(stage.name)
        if not live:
            return trials
        if order.random() < kills:
            live.clear()
            continue
        name = order.choice(sorted(live))
        live.remove(name)
        trial = trials[name]
        trial = trial.reported(Report(trial.until, score(name, trial.until), 0))
        ended = trial.until == plan.steps
        trials[name] = trial._replace(state="complete" if ended else "paused", miou=score(name, trial.until))
        if name == fails:
            trials[name] = trials[name]._replace(state="failed", reports=())
        trials |= {left.name: left for left in left_behind(list(trials.values()), plan)}


def halved(plan: Plan) -> dict[str, int]:
    """The last step of each trial by the textbook: all to the first rung, then one of `reduction`, rounded up, to the next."""
    last, going = {}, [f"{number:04d}" for number in range(plan.trials)]
    for step in (*plan.rungs, plan.steps):
        last |= dict.fromkeys(going, step)
        going = sorted(going, key=lambda name, step=step: -score(name, step))  # type: ignore[misc]
        going = going[: -(-len(going) // plan.reduction)]
    return last


@given(PLANS, st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([0.0, 0.3]))
@settings(max_examples=100, deadline=None)
def test_every_order_of_events_trains_what_the_textbook_says(plan: Plan, seed: int, places: int, kills: float) -> None:
    found = trained(plan, random.Random(seed), places, kills)
    points = {name: trial for name, trial in found.items() if not trial.confirms}
    assert {name: trial.step for name, trial in points.items()} == halved(plan)
    assert {trial.state for trial in points.values()} <= {"complete", "stopped"}
    complete = sorted((trial for trial in points.values() if trial.state == "complete"), key=lambda trial: -(trial.miou or 0))
    others = [f"{trial.name}-seed{number}" for trial in complete[:2] for number in range(1, plan.seeds)]
    assert sorted(name for name, trial in found.items() if trial.confirms) == sorted(others)


@given(PLANS, st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([0.0, 0.3]))
@settings(max_examples=100, deadline=None)
def test_rungs_that_do_not_wait_pass_at_least_as_many(plan: Plan, seed: int, places: int, kills: float) -> None:
    found = trained(plan._replace(waits=False), random.Random(seed), places, kills)
    points = {name: trial for name, trial in found.items() if not trial.confirms}
    assert len(points) == plan.trials
    assert {trial.state for trial in points.values()} <= {"complete", "stopped"}
    for rung in (*plan.rungs, plan.steps):
        assert sum(trial.step >= rung for trial in points.values()) >= sum(step >= rung for step in halved(plan).values())


@given(PLANS, st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_more_trials_extend_a_search(plan: Plan, more: int, seed: int) -> None:
    plan = plan._replace(seeds=1)
    larger = plan._replace(trials=plan.trials + more)
    trials = trained(plan, random.Random(seed))
    while stage := next_stage(sorted(trials.values()), (), larger):
        trial = trials.get(stage.name, Trial(stage.name, {}, stage.until)).reported(
            Report(stage.until, score(stage.name, stage.until), 0)
        )
        trials[stage.name] = trial._replace(state="complete" if stage.until == plan.steps else "paused", until=stage.until)
    # Trials that went on when there were fewer stay in the comparison of the later rungs, so other ones may pass these.
    assert len(trials) == larger.trials
    for rung in (*larger.rungs, larger.steps):
        assert sum(trial.step >= rung for trial in trials.values()) >= sum(step >= rung for step in halved(larger).values())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40, unique=True), st.integers(2, 5))
def test_a_rung_keeps_what_tunes_scheduler_keeps(scores: list[float], reduction: int) -> None:
    bracket = _Bracket(min_t=1, max_t=2, reduction_factor=reduction, s=0, stop_last_trials=True)
    cutoff = bracket.cutoff(dict(enumerate(scores)))
    kept = survivors({str(place): value for place, value in enumerate(scores)}, reduction)
    clear = {place for place, value in enumerate(scores) if value > cutoff + 1e-12}  # its percentile is interpolated, so rounded
    near = {place for place, value in enumerate(scores) if value >= cutoff - 1e-12}
    assert clear <= {int(place) for place in kept} <= near
    assert len(kept) == -(-len(scores) // reduction)


def test_a_failed_trial_holds_nobody_up_and_survives_nothing() -> None:
    plan = Plan(3, (10,), 20, 2, waits=True)
    found = trained(plan, random.Random(0), fails="0001")
    assert found["0001"].state == "failed"
    best = max(("0000", "0002"), key=lambda name: score(name, 10))
    assert [name for name, trial in found.items() if trial.state == "complete"] == [best]


def test_a_score_that_is_not_a_number_passes_no_rung_and_the_earlier_of_equals_does() -> None:
    assert survivors({"0000": None, "0001": 0.5, "0002": 0.5, "0003": 0.1}, 2) == ["0001", "0002"]
    assert survivors({"0000": 0.5, "0001": 0.5}, 2) == ["0000"]
    assert survivors({"0000": None}, 2) == []


def test_a_trial_that_is_left_behind_says_why() -> None:
    plan = Plan(2, (10,), 20, 2, waits=True)
    trials = [Trial(name, {}, 10, "paused", reports=(Report(10, miou, 1.0),)) for name, miou in (("0000", 0.25), ("0001", 0.75))]
    (left,) = left_behind(trials, plan)
    assert (left.name, left.state, left.reason) == ("0000", "stopped", "mIoU 0.2500 at step 10: not among the best 1 of 2")


def test_rungs_are_validations_below_the_last_step() -> None:
    def of(steps: int, every: int, grace: int, reduction: int) -> tuple[int, ...]:
        settings = {"train.steps": steps, "train.validate_every": every, "tune.grace_steps": grace, "tune.reduction": reduction}
        return rungs(override(config(), settings))

    assert of(240, 60, 60, 2) == (60, 120)
    assert of(240, 60, 100, 2) == (120,)  # the second, at 200, would be validated at the last step
    assert of(240, 60, 10, 2) == (60, 120, 180)
    assert of(100, 1000, 10, 2) == ()
    assert of(100, 10, 100, 2) == ()
