"""Steps left out: asked about one step late, counted, said, and refused when too many follow each other."""

import logging

import pytest
import torch

from ccnet.step import StepResult
from pipeline.fault_tolerance.failures import NotFinite
from pipeline.fault_tolerance.step_failures import LeftOut


class Asked:
    """Stands for `applied` on a device; notes when it is asked."""

    def __init__(self, value):
        self.value, self.asked = value, False

    def __bool__(self):
        self.asked = True
        return self.value


def result(applied):
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    return StepResult({"loss": nan}, nan, applied)


def test_a_step_is_asked_about_when_the_next_one_is_under_way():
    left_out, first, second = LeftOut(limit=3, total=0), Asked(True), Asked(True)
    left_out.add(0, 0.1, result(first))
    assert not first.asked
    left_out.add(1, 0.1, result(second))
    assert (first.asked, second.asked) == (True, False)
    left_out.ask()
    assert second.asked


def test_each_one_is_said_and_the_total_goes_on(caplog):
    left_out = LeftOut(limit=3, total=5)
    with caplog.at_level(logging.WARNING):
        for step, applied in enumerate([True, False, False, True, False]):
            left_out.add(step, 0.1, result(applied))
        left_out.ask()
        left_out.ask()
    assert left_out.total == 8
    said = [record.message for record in caplog.records]
    assert [line.split(":")[1].strip() for line in said] == ["step 1", "step 2", "step 4"]
    assert [line[-12:] for line in said] == ["(1 in a row)", "(2 in a row)", "(1 in a row)"]


def test_too_many_in_a_row_are_refused_with_the_last_steps_figures():
    left_out = LeftOut(limit=2, total=0)
    left_out.add(6, 0.1, result(False))
    left_out.add(7, 0.25, result(False))
    with pytest.raises(NotFinite, match=r"^2 steps in a row .* step 7: loss nan, gradient norm nan, learning rate 0\.25"):
        left_out.ask()
