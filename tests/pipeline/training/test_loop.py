"""The actions after each step of a training of ten steps that validates every fourth step and logs every second."""

import pytest

from pipeline.config.train import Train
from pipeline.fault_tolerance.interruptions import Interruption
from pipeline.training.loop import Actions, Schedule

NODE_GOES = Interruption("node a1 is about to be taken away", moves=True)
TOO_LATE = NODE_GOES._replace(save=False)
STOPPED = Interruption("stopped on request", moves=False)
SPENT = Interruption("stop.hours = 1 are spent", moves=False, validate=True)


def actions_after(
    found: dict[int, Interruption] | None = None, skipped_steps: tuple[int, ...] = (), checkpoint_every: int = 1000
) -> dict[int, Actions]:
    """Step -> the actions after it; the steps `skipped_steps` were not applied."""
    settings = Train(steps=10, validate_every=4, log_every=2, checkpoint_every=checkpoint_every)
    schedule = Schedule(settings, lambda done, stored_s: (found or {}).get(done))
    return {done: schedule.after(done, done not in skipped_steps, 1.0) for done in range(1, 11)}


def steps(made: dict[int, Actions], name: str) -> list[int]:
    return [done for done, actions in made.items() if getattr(actions, name)]


def test_it_logs_and_validates_in_its_rhythm_and_after_the_last_step() -> None:
    made = actions_after()
    assert steps(made, "log") == [2, 4, 6, 8, 10]
    assert steps(made, "validate") == steps(made, "save") == [4, 8, 10]
    assert steps(made, "stop") == []


def test_a_validation_waits_for_a_step_that_was_applied_but_not_after_the_last() -> None:
    assert steps(actions_after(skipped_steps=(4, 5)), "save") == [6, 8, 10]
    assert steps(actions_after(skipped_steps=(8, 9, 10)), "save") == [4, 10]


def test_checkpoints_between_validations_wait_for_a_step_that_was_applied_too() -> None:
    made = actions_after(checkpoint_every=3)
    assert (steps(made, "save"), steps(made, "validate")) == ([3, 4, 6, 8, 9, 10], [4, 8, 10])
    made = actions_after(checkpoint_every=3, skipped_steps=(3, 6))
    assert (steps(made, "save"), steps(made, "validate")) == ([4, 7, 8, 9, 10], [4, 8, 10])


@pytest.mark.parametrize(
    ("found", "actions"),
    [
        (NODE_GOES, Actions(True, False, True, NODE_GOES)),
        (TOO_LATE, Actions(True, False, False, TOO_LATE)),
        (STOPPED, Actions(True, False, True, STOPPED)),
        (SPENT, Actions(True, True, True, SPENT)),
    ],
)
def test_stopping_saves_if_there_is_time_and_validates_if_a_budget_is_spent(found: Interruption, actions: Actions) -> None:
    assert actions_after({6: found})[6] == actions_after({8: found})[8] == actions


def test_a_skipped_step_is_not_saved_and_only_a_preemption_stops_after_it() -> None:
    assert actions_after({6: NODE_GOES}, skipped_steps=(6,))[6] == Actions(True, False, False, TOO_LATE)
    for stays in (STOPPED, SPENT):
        assert actions_after({6: stays}, skipped_steps=(6,))[6] == Actions(True, False, False)


def test_nothing_interrupts_the_last_step() -> None:
    assert actions_after({10: STOPPED})[10] == Actions(True, True, True)
