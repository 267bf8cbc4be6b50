"""The polynomial learning rate against the published one, and SGD."""

import pytest
import torch
from torch import nn

from ccnet import build_ccnet, build_optimizer, poly_learning_rate


@pytest.mark.parametrize("case", [0, 1, 2])
def test_equals_the_published_schedule(case, golden):
    z = {name: value.tolist() for name, value in golden("poly_lr").items() if name.startswith(f"c{case}_")}
    base, steps, power = (z[f"c{case}_{name}"] for name in ("base", "max_iter", "power"))
    rates = [poly_learning_rate(base, step, steps, power) for step in z[f"c{case}_iters"]]
    assert rates == pytest.approx(z[f"c{case}_lr"], rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(("step", "steps"), [(-1, 10), (11, 10), (0, 0)])
def test_a_step_outside_the_schedule_is_an_error(step, steps):
    with pytest.raises(ValueError, match=f"step = {step} of {steps}"):
        poly_learning_rate(0.01, step, steps)


def test_sgd_follows_the_textbook():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 2.0)
    optimizer = build_optimizer(net, learning_rate=0.1, momentum=0.5, weight_decay=0.25)
    for _ in range(2):
        net.weight.grad = torch.ones(1, 1)
        optimizer.step()
    # v1 = 1 + 0.25 * 2 = 1.5, w1 = 2 - 0.15; v2 = 0.5 * v1 + 1 + 0.25 * w1, w2 = w1 - 0.1 v2
    assert net.weight.item() == pytest.approx(1.85 - 0.1 * (0.75 + 1 + 0.25 * 1.85))


def test_frozen_parameters_are_left_out():
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=0)
    (group,) = build_optimizer(net, learning_rate=0.1, momentum=0.9, weight_decay=0.0).param_groups
    assert len(group["params"]) == len(list(net.parameters())) - len(list(net.head.attention.parameters()))


def test_the_rate_rises_to_the_schedule() -> None:
    rates = [poly_learning_rate(0.1, step, 100, warmup_steps=4) for step in range(6)]
    plain = [poly_learning_rate(0.1, step, 100) for step in range(6)]
    assert rates == pytest.approx([r * f for r, f in zip(plain, (0.25, 0.5, 0.75, 1, 1, 1), strict=True)])


def test_a_negative_warm_up_is_refused():
    with pytest.raises(ValueError, match="warmup_steps = -3: must be >= 0"):
        poly_learning_rate(0.1, 0, 10, warmup_steps=-3)


def test_the_rate_ends_at_the_smallest_as_in_mmsegmentation():
    """0.01 to 1e-4 over 80,000 steps: PolyLrUpdaterHook of mmcv 1, with which the published checkpoints were trained."""
    rates = [poly_learning_rate(0.01, step, 80_000, 0.9, min_lr=1e-4) for step in (0, 40_000, 79_999, 80_000)]
    assert rates == pytest.approx([0.01, 5.405279e-3, 1.003827e-4, 1e-4], rel=1e-6)
    assert poly_learning_rate(0.3, 7, 10, 0.9, min_lr=0.0) == 0.3 * (1.0 - 7 / 10) ** 0.9  # to the bit


@pytest.mark.parametrize("smallest", [-1e-4, 0.02, float("nan")])
def test_a_smallest_rate_outside_the_schedule_is_refused(smallest):
    with pytest.raises(ValueError, match=r"min_lr = .*: must be 0 to the base rate 0.01"):
        poly_learning_rate(0.01, 0, 10, min_lr=smallest)
