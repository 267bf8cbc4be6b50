"""What follows a step, for a training of ten steps that validates after every fourth and logs every second."""

import pytest

from pipeline.config.train import Train
from pipeline.fault_tolerance.interruptions import Interruption
from pipeline.training.agenda import Agenda, Turn

NODE_GOES = Interruption("node a1 is about to be taken away", moves=True)
TOO_LATE = NODE_GOES._replace(saves=False)
STOPPED = Interruption("told to stop", moves=False)
SPENT = Interruption("stop.hours = 1 are spent", moves=False, validates=True)


def turns(found: dict[int, Interruption] | None = None, left_out: tuple[int, ...] = ()) -> dict[int, Turn]:
    """What follows each step, those `left_out` not applied."""
    agenda = Agenda(Train(steps=10, validate_every=4, log_every=2), lambda done, stored_s: (found or {}).get(done))
    return {done: agenda.after(done, done not in left_out, 1.0) for done in range(1, 11)}


def steps(made: dict[int, Turn], name: str) -> list[int]:
    return [done for done, turn in made.items() if getattr(turn, name)]


def test_it_logs_and_validates_in_its_rhythm_and_after_the_last_step() -> None:
    made = turns()
    assert steps(made, "logs") == [2, 4, 6, 8, 10]
    assert steps(made, "validates") == steps(made, "saves") == [4, 8, 10]
    assert steps(made, "leaves") == []


def test_a_validation_waits_for_a_step_that_was_not_left_out_but_the_last() -> None:
    assert steps(turns(left_out=(4, 5)), "saves") == [6, 8, 10]
    assert steps(turns(left_out=(8, 9, 10)), "saves") == [4, 10]


@pytest.mark.parametrize(
    ("found", "turn"),
    [
        (NODE_GOES, Turn(True, False, True, NODE_GOES)),
        (TOO_LATE, Turn(True, False, False, TOO_LATE)),
        (STOPPED, Turn(True, False, True, STOPPED)),
        (SPENT, Turn(True, True, True, SPENT)),
    ],
)
def test_leaving_off_saves_where_there_is_time_and_validates_where_a_budget_is_spent(found: Interruption, turn: Turn) -> None:
    assert turns({6: found})[6] == turns({8: found})[8] == turn


def test_a_step_that_was_left_out_is_not_saved_and_only_a_node_that_goes_drives_out() -> None:
    assert turns({6: NODE_GOES}, left_out=(6,))[6] == Turn(True, False, False, TOO_LATE)
    for stays in (STOPPED, SPENT):
        assert turns({6: stays}, left_out=(6,))[6] == Turn(True, False, False)


def test_nothing_interrupts_the_last_step() -> None:
    assert turns({10: STOPPED})[10] == Turn(True, True, True)
