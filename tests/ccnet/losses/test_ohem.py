"""Hard example mining against the published numbers, and its subsample against scipy's."""

import pytest
import torch
from scipy.ndimage import zoom

from ccnet.losses import Ohem, cross_entropy, ohem_cross_entropy
from ccnet.losses.ohem import sample_probability

DTYPES = [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-5, 2e-5)]


def mined(z, dtype):
    """Loss, count and gradient of the loss for one golden file."""
    logits = z["logits"].to(dtype).requires_grad_()
    total, count = ohem_cross_entropy(
        logits, z["labels"], thresh=z["thresh"].item(), min_kept=z["min_kept"].item(), factor=z["factor"].item()
    )
    loss = total / count.clamp(min=1)
    loss.backward()
    return loss, count, logits.grad


@pytest.mark.parametrize(("dtype", "tolerance", "gradient_tolerance"), DTYPES)
@pytest.mark.parametrize("name", ["f1_minkept0", "f1_raised", "f1_thresh", "f8_raised", "f8_thresh"])
def test_equals_the_published_one(name, dtype, tolerance, gradient_tolerance, golden, within):
    z = golden(f"ohem_{name}")
    loss, count, gradient = mined(z, dtype)
    assert count == z["n_kept"]
    within(loss, z["loss"], tolerance)
    within(gradient, z["g_logits"], gradient_tolerance)


@pytest.mark.parametrize("name", ["f1_fewvalid", "f8_fewvalid"])
def test_min_kept_above_the_batch_is_plain_cross_entropy_with_a_warning(name, golden, within):
    z = golden(f"ohem_{name}")
    with pytest.warns(UserWarning, match=r"min_kept = \d+: .* plain cross-entropy; set less than \d+"):
        loss, count, gradient = mined(z, torch.float64)
    assert count == z["n_kept"] == z["n_valid"]
    within(loss, z["loss"], 1e-9)
    within(gradient, z["g_logits"], 1e-9)


@pytest.mark.parametrize("name", ["f1_allignored", "f1_nonekept"])
def test_nothing_kept_gives_zero_and_zero_gradients(name, golden):
    z = golden(f"ohem_{name}")
    loss, count, gradient = mined(z, torch.float64)
    assert (loss.item(), count.item()) == (0.0, 0.0)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("size", [(40, 56), (33, 49), (97, 97), (12, 20), (769, 41), (1024, 9), (3, 697)])
def test_the_subsample_is_that_of_scipy(size, within):
    scores, label = torch.randn(2, 4, *size, dtype=torch.float64), torch.randint(0, 4, (2, *size))
    label[torch.rand(2, *size) < 0.3] = 255
    p, target = sample_probability(scores, label, factor=8, ignore_index=255)
    factors = [max(1, round(length / 8)) / length for length in size]
    expected_target = torch.from_numpy(zoom(label.numpy(), (1, *factors), order=0))
    every = torch.from_numpy(zoom(scores.softmax(1).numpy(), (1, 1, *factors), order=1))
    assert torch.equal(target, expected_target)
    valid = target != 255
    expected = every.gather(1, torch.where(valid, target, 0)[:, None])[:, 0]
    within(p[valid], expected[valid], 1e-12)


def test_the_last_row_is_sampled_where_scipy_loses_it():
    label = torch.full((1, 768, 8), 1)
    p, target = sample_probability(torch.zeros(1, 2, 768, 8), label, factor=8, ignore_index=255)
    assert zoom(label.numpy(), (1, 1 / 8, 1 / 8), order=0)[0, -1, 0] == 0
    assert (target[0, -1, 0], p[0, -1, 0]) == (1, 0.5)


def test_class_weights_weigh_the_pixels_kept_and_do_not_choose_them():
    logits, label = torch.randn(1, 2, 8, 8), torch.randint(0, 2, (1, 8, 8))
    hard = {"thresh": 0.5, "min_kept": 0, "factor": 1}
    sums, counts = zip(*(ohem_cross_entropy(logits, torch.where(label == k, label, 255), **hard) for k in range(2)), strict=True)
    total, count = ohem_cross_entropy(logits, label, **hard, class_weights=torch.tensor([0.5, 3.0]))
    assert total.item() == pytest.approx((0.5 * sums[0] + 3 * sums[1]).item())
    assert count == 0.5 * counts[0] + 3 * counts[1]


def test_a_score_of_nan_shows_in_the_loss():
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0, 0, 0] = float("nan")
    total, _ = ohem_cross_entropy(logits, torch.zeros(1, 2, 2, dtype=torch.long), min_kept=0, factor=1)
    assert total.isnan()


def test_a_min_kept_that_rounds_to_nothing_is_warned_of():
    with pytest.warns(UserWarning, match=r"min_kept = 63: rounds to no pixel at all; set at least factor\*\*2 = 64, or 0"):
        ohem_cross_entropy(torch.zeros(1, 2, 3, 3), torch.zeros(1, 17, 17, dtype=torch.uint8), min_kept=63)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"thresh": 0.0}, r"thresh = 0.0: must be in \(0, 1\]"), ({"min_kept": -1}, "min_kept = -1"), ({"factor": 0}, "factor = 0")],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Ohem(**setting)


def test_two_workers_mine_the_pixels_of_one_batch(workers, within):
    alone, both = workers[0]["losses"], [worker["losses"] for worker in workers[1]]
    assert sum(worker["ohem/count"] for worker in both) == alone["ohem/count"] == 60
    within(sum(worker["ohem/total"] for worker in both), alone["ohem/total"], 1e-12)
    within(torch.cat([worker["ohem/grad"] for worker in both]), alone["ohem/grad"], 1e-12)


def test_thresh_1_keeps_every_valid_pixel_with_a_warning():
    logits, label = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 9, 9))
    with pytest.warns(UserWarning, match=r"thresh = 1.0: keeps every pixel"):
        total, count = ohem_cross_entropy(logits, label, thresh=1.0, min_kept=0)
    plain, num_valid = cross_entropy(logits, label)
    torch.testing.assert_close(total, plain)
    assert count == num_valid
