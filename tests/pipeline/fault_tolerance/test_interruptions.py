"""Budgets: time and money, summed over all attempts."""

import pytest

from pipeline.config.train import Stop
from pipeline.fault_tolerance.interruptions import Interruption, TimeSpent, preempted


def test_attempts_add_up_whatever_their_number_of_workers() -> None:
    spent = TimeSpent().plus(1800, 2).plus(3600, 4)
    assert spent == TimeSpent(hours=1.5, worker_hours=5.0)


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (Stop(), None),
        (Stop(hours=1.6), None),
        (Stop(hours=1.5), "stop.hours = 1.5 are spent: a larger value resumes the run"),
        (Stop(cost=10.1, cost_per_worker_hour=2), None),
        (Stop(cost=10, cost_per_worker_hour=2), "stop.cost = 10 is spent (5.00 worker hours): a larger value resumes the run"),
    ],
)
def test_a_budget_is_spent_when_it_is_reached(stop: Stop, message: str | None) -> None:
    assert TimeSpent(hours=1.5, worker_hours=5.0).exhausted(stop) == message


def test_a_preempted_node_is_left_after_a_checkpoint_if_there_is_time() -> None:
    node = "0123456789ab"
    assert preempted([node], 60.4, 10) == Interruption("node 01234567 is about to be taken away in 60 s", moves=True)
    assert preempted([node], float("inf"), 10) == Interruption("node 01234567 is about to be taken away", moves=True)
    late = "node 01234567 is about to be taken away in 20 s, too soon for a checkpoint, which takes 10 s"
    assert preempted([node], 20, 10) == Interruption(late, moves=True, save=False)
