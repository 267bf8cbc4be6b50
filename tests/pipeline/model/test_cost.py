"""What a step costs, counted on tensors without values, against steps that are really made."""

import sys
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.cost import step_cost
from tests.support.step_memory import CLASSES, measured_peak, settings, steps

IMAGES = 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the pages of a process as Linux does")
@pytest.mark.parametrize(
    "changed",
    [
        {"model__backbone": "small", "data__crop_size": 129, "model__recurrence": 1},
        {"data__crop_size": 97, "model__recurrence": 3, "train__ema_decay": 0.9},
    ],
    ids=str,
)
def test_the_counted_memory_is_that_of_a_real_step(changed: dict[str, Any]) -> None:
    counted = step_cost(settings(IMAGES, changed), CLASSES, IMAGES).peak_bytes
    assert counted == pytest.approx(measured_peak(IMAGES, changed), rel=0.1)


@pytest.mark.parametrize("passes", [0, 2])
def test_the_counted_operations_are_those_of_a_real_step(passes: int) -> None:
    made = settings(IMAGES, {"model__recurrence": passes})
    with FlopCounterMode(display=False) as counter:
        steps(made, 1)
    assert step_cost(made, CLASSES, IMAGES).flops == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    "changed",
    [
        {"train__precision": "bf16"},
        {"train__freeze_norm": True},
        {"loss__consistency": {}},
        {"loss__ohem": {"min_kept": 100}},
        {"loss__lovasz_weight": 1.0, "loss__dice_weight": 1.0},
    ],
    ids=str,
)
def test_every_kind_of_training_can_be_counted(changed: dict[str, Any]) -> None:
    assert step_cost(settings(IMAGES, changed), CLASSES, IMAGES).peak_bytes > 0


def test_half_precision_needs_less_and_more_images_need_more() -> None:
    whole, half = ({"data__crop_size": 161, "train__precision": precision} for precision in ("float32", "bf16"))
    assert step_cost(settings(4, half), CLASSES, 4).peak_bytes < step_cost(settings(4, whole), CLASSES, 4).peak_bytes
    one, four = (step_cost(settings(4, {}), CLASSES, images) for images in (1, 4))
    assert four.flops == 4 * one.flops
    assert one.peak_bytes < four.peak_bytes < 4 * one.peak_bytes
