"""What follows a step, for a training of ten steps that validates after every fourth and logs every second."""

import pytest

from pipeline.config.train import Train
from pipeline.fault_tolerance.interruptions import Interruption
from pipeline.training.loop import Actions, Schedule

NODE_GOES = Interruption("node a1 is about to be taken away", moves=True)
TOO_LATE = NODE_GOES._replace(save=False)
STOPPED = Interruption("told to stop", moves=False)
SPENT = Interruption("stop.hours = 1 are spent", moves=False, validate=True)


def turns(found: dict[int, Interruption] | None = None, skipped_steps: tuple[int, ...] = ()) -> dict[int, Actions]:
    """What follows each step, those `skipped_steps` not applied."""
    schedule = Schedule(Train(steps=10, validate_every=4, log_every=2), lambda done, stored_s: (found or {}).get(done))
    return {done: schedule.after(done, done not in skipped_steps, 1.0) for done in range(1, 11)}


def steps(made: dict[int, Actions], name: str) -> list[int]:
    return [done for done, turn in made.items() if getattr(turn, name)]


def test_it_logs_and_validates_in_its_rhythm_and_after_the_last_step() -> None:
    made = turns()
    assert steps(made, "log") == [2, 4, 6, 8, 10]
    assert steps(made, "validate") == steps(made, "save") == [4, 8, 10]
    assert steps(made, "stop") == []


def test_a_validation_waits_for_a_step_that_was_not_left_out_but_the_last() -> None:
    assert steps(turns(skipped_steps=(4, 5)), "save") == [6, 8, 10]
    assert steps(turns(skipped_steps=(8, 9, 10)), "save") == [4, 10]


@pytest.mark.parametrize(
    ("found", "turn"),
    [
        (NODE_GOES, Actions(True, False, True, NODE_GOES)),
        (TOO_LATE, Actions(True, False, False, TOO_LATE)),
        (STOPPED, Actions(True, False, True, STOPPED)),
        (SPENT, Actions(True, True, True, SPENT)),
    ],
)
def test_leaving_off_saves_where_there_is_time_and_validates_where_a_budget_is_spent(found: Interruption, turn: Actions) -> None:
    assert turns({6: found})[6] == turns({8: found})[8] == turn


def test_a_step_that_was_left_out_is_not_saved_and_only_a_node_that_goes_drives_out() -> None:
    assert turns({6: NODE_GOES}, skipped_steps=(6,))[6] == Actions(True, False, False, TOO_LATE)
    for stays in (STOPPED, SPENT):
        assert turns({6: stays}, skipped_steps=(6,))[6] == Actions(True, False, False)


def test_nothing_interrupts_the_last_step() -> None:
    assert turns({10: STOPPED})[10] == Actions(True, True, True)
