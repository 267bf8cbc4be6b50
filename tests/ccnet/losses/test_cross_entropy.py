"""Cross-entropy as (sum, count) against the published one."""

import pytest
import torch
import torch.nn.functional as F

from ccnet.losses import cross_entropy
from ccnet.losses.cross_entropy import fitting_weights


@pytest.mark.parametrize(("logits", "expected"), [("main", "loss_main"), ("aux", "loss_aux")])
def test_cross_entropy_equals_the_published_one(logits, expected, golden, within):
    z = golden("twohead_ce")
    total, count = cross_entropy(z[logits].double(), z["labels"])
    assert count == (z["labels"] != 255).sum()
    within(total / count, z[expected], 1e-9)


def test_class_weights_weigh_the_sum_and_the_count():
    logits, label = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    label[0, 0] = 255
    weights = torch.tensor([0.5, 2.0, 1.0])
    total, count = cross_entropy(logits, label, class_weights=weights)
    torch.testing.assert_close((total / count).float(), F.cross_entropy(logits, label, weight=weights, ignore_index=255))


def test_all_pixels_ignored_give_zero_and_zero_gradients():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    total, count = cross_entropy(logits, torch.full((1, 7, 7), 255, dtype=torch.uint8), class_weights=torch.ones(3))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_logits_are_summed_in_float32():
    total, _ = cross_entropy(torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16), torch.zeros(1, 65, 65, dtype=torch.uint8))
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(65 * 65 * 0.693147, rel=1e-5)


def test_class_weights_of_another_number_than_classes_are_refused():
    with pytest.raises(ValueError, match="class_weights has 7 values: must have one for each of 2 classes"):
        fitting_weights(torch.ones(7), torch.zeros(1, 2, 3, 3))
