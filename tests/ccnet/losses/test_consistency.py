"""The category-consistent loss against the paper's formulas, term by term."""

import pytest
import torch

from ccnet.losses import category_consistent

TERMS = {"var": (1.0, 0.0, 0.0), "dis": (0.0, 1.0, 0.0), "reg": (0.0, 0.0, 1.0)}
CASES = ["allignored", "far", "mixed", "oneclass", "tight"]


def mean_and_gradient(features, label, **settings):
    features = features.clone().requires_grad_()
    total, count = category_consistent(features, label, **settings)
    mean = total / count
    mean.backward()
    return mean, features.grad


@pytest.mark.parametrize("num_classes", [None, 19])
@pytest.mark.parametrize("mode", ["batch", "perimage"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_the_definition(case, mode, num_classes, golden, within):
    z = golden(f"ccl_{case}")
    for dtype, tolerance, gradient_tolerance in [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-5, 2e-5)]:
        mean, gradient = mean_and_gradient(
            z["feat"].to(dtype), z["labels"], per_image=mode == "perimage", num_classes=num_classes
        )
        within(mean, z[f"{mode}_total"], tolerance)
        within(gradient, z[f"{mode}_g_feat"], gradient_tolerance)


@pytest.mark.parametrize("mode", ["batch", "perimage"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("term", TERMS)
def test_each_term_equals_the_definition(term, case, mode, golden, within):
    z = golden(f"ccl_{case}")
    alpha, beta, gamma = TERMS[term]
    total, count = category_consistent(
        z["feat"].double(), z["labels"], alpha=alpha, beta=beta, gamma=gamma, per_image=mode == "perimage"
    )
    within(total / count, z[f"{mode}_{term}"], 1e-9)


def test_classes_with_one_and_the_same_feature_have_finite_gradients():
    feature = torch.randn(1, 16, 1, 1, dtype=torch.float64)
    label = torch.tensor([[[0, 1], [0, 1]]])
    mean, gradient = mean_and_gradient(feature.expand(1, 16, 2, 2), label, gamma=0.0)
    assert mean.item() == pytest.approx(9.0, rel=1e-12)  # (2 * 1.5)^2
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_features_of_zero_have_finite_gradients():
    _, gradient = mean_and_gradient(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1], [2, 255]]]))
    assert gradient.isfinite().all()


def test_ignored_pixels_get_no_gradient():
    label = torch.randint(0, 3, (2, 4, 4))
    label[:, 0] = 255
    _, gradient = mean_and_gradient(torch.randn(2, 8, 4, 4), label)
    assert (gradient[:, :, 0] == 0).all()
    assert (gradient[:, :, 1:] != 0).any()


def test_a_label_of_the_images_size_is_brought_to_the_features():
    features, label = torch.randn(1, 4, 3, 5), torch.randint(0, 3, (1, 17, 33))
    assert category_consistent(features, label) == category_consistent(features, label[:, ::8, ::8])


def test_autocast_and_half_precision_features_are_computed_in_float32():
    features, label = torch.randn(1, 4, 6, 6).bfloat16(), torch.randint(0, 3, (1, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = category_consistent(features, label)
    assert total.dtype == torch.float32
    assert total == category_consistent(features.float(), label)[0]


def test_deltas_that_cross_are_refused():
    with pytest.raises(ValueError, match=r"delta_v = 2.0, delta_d = 1.5: must be 0 <= delta_v < delta_d"):
        category_consistent(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8), delta_v=2.0)


@pytest.mark.parametrize(("mode", "count"), [("consistency", 1), ("consistency per image", 4)])
def test_two_workers_have_the_classes_of_one_batch(mode, count, workers, within):
    alone, both = workers[0]["losses"], [worker["losses"] for worker in workers[1]]
    assert sum(worker[f"{mode}/count"] for worker in both) == alone[f"{mode}/count"] == count
    within(sum(worker[f"{mode}/total"] for worker in both), alone[f"{mode}/total"], 1e-12)
    within(torch.cat([worker[f"{mode}/grad"] for worker in both]), alone[f"{mode}/grad"], 1e-12)


def test_an_id_beyond_the_classes_is_an_error():
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        category_consistent(torch.randn(1, 4, 2, 2), torch.tensor([[[0, 1], [3, 2]]]), num_classes=3)
