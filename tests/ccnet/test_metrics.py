"""The confusion matrix against the published one, and its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet import ConfusionMatrix
from ccnet.metrics import check_shapes


@pytest.mark.parametrize("case", ["miou_k19", "miou_k19_absent", "miou_k3_perfect", "miou_k5_allignored"])
def test_equals_the_published_confusion_matrix(case, golden):
    z = golden(case)
    confusion = ConfusionMatrix(int(z["num_classes"]))
    confusion.update(z["pred"], z["labels"])
    assert torch.equal(confusion.counts, z["confusion"])
    assert torch.equal(confusion.iou().isnan(), ~z["present"])
    torch.testing.assert_close(confusion.iou().nan_to_num(0.0), z["iou"], rtol=0, atol=1e-12)
    assert confusion.miou() == pytest.approx(z["miou_present_only"].item(), abs=1e-12, nan_ok=True)
    assert confusion.miou_all_classes() == pytest.approx(z["miou"].item(), abs=1e-12)


def test_rows_are_labels_and_columns_predictions():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 255]))
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert confusion.iou().tolist() == pytest.approx([0.5, 0.5, math.nan], nan_ok=True)
    assert confusion.miou() == 0.5
    assert confusion.miou_all_classes() == pytest.approx(1 / 3)
    assert confusion.pixel_accuracy() == pytest.approx(2 / 3)


def test_a_class_that_is_only_predicted_counts_zero():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 2]), torch.tensor([0, 0]))
    assert confusion.miou() == 0.25  # class 0: 1/2, class 2: 0, class 1 does not occur


def test_without_pixels_the_figures_are_not_a_number():
    assert math.isnan(ConfusionMatrix(2).miou())
    assert math.isnan(ConfusionMatrix(2).pixel_accuracy())
    assert math.isnan(ConfusionMatrix(2).mean_accuracy())
    assert math.isnan(ConfusionMatrix(2).frequency_weighted_iou())


pixels = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 255])), max_size=30)


def counted(batch: list[tuple[int, int]]) -> ConfusionMatrix:
    confusion = ConfusionMatrix(4)
    both = torch.tensor(batch, dtype=torch.uint8).view(-1, 2)
    confusion.update(both[:, 0], both[:, 1])
    return confusion


@given(pixels, pixels)
@settings(deadline=None)
def test_merging_parts_equals_counting_the_whole(first, second):
    whole = counted(first + second)
    assert torch.equal(counted(first).merge(counted(second)).counts, whole.counts)
    assert torch.equal(counted(second).merge(counted(first)).counts, whole.counts)
    assert whole.counts.sum() == sum(label != 255 for _, label in first + second)


def test_an_unknown_label_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"label holds class id \[7, 19\]: must be 0 to 4 or 255"):
        ConfusionMatrix(5).update(torch.zeros(4, dtype=torch.uint8), torch.tensor([0, 19, 7, 255], dtype=torch.uint8))


def test_an_unknown_prediction_is_an_error_unless_its_pixel_is_ignored():
    confusion = ConfusionMatrix(5)
    confusion.update(torch.tensor([9]), torch.tensor([255]))
    with pytest.raises(ValueError, match=r"prediction holds class id \[9\]"):
        confusion.update(torch.tensor([9]), torch.tensor([0]))


def test_matrices_of_different_classes_do_not_merge():
    with pytest.raises(ValueError, match="of 3 classes"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))


def test_a_confusion_matrix_needs_a_class():
    with pytest.raises(ValueError, match="num_classes = 0"):
        ConfusionMatrix(0)


def test_the_figures_of_long_et_al_by_hand():
    confusion = ConfusionMatrix(3)
    confusion.counts += torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])  # class 2 occurs nowhere
    assert confusion.class_accuracy().tolist() == pytest.approx([3 / 4, 1.0, math.nan], nan_ok=True)
    assert confusion.mean_accuracy() == pytest.approx(7 / 8)  # over the two labelled classes
    assert confusion.pixel_accuracy() == 7 / 8
    assert confusion.frequency_weighted_iou() == pytest.approx((4 * 3 / 4 + 4 * 4 / 5) / 8)


def test_a_class_that_is_only_predicted_has_no_accuracy_and_no_weight():
    confusion = ConfusionMatrix(2)
    confusion.counts += torch.tensor([[3, 1], [0, 0]])
    assert confusion.miou() == pytest.approx((3 / 4 + 0) / 2)
    assert confusion.mean_accuracy() == 3 / 4
    assert confusion.frequency_weighted_iou() == 3 / 4


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3))
@settings(deadline=None)
def test_accuracies_equal_their_definitions(n):
    """n[i][j]: pixels of class i predicted as j; t[i]: pixels of class i (Long et al. 2015, section 5)."""
    confusion, classes = ConfusionMatrix(3), range(3)
    confusion.counts += torch.tensor(n)
    t, predicted = [sum(row) for row in n], [sum(row[j] for row in n) for j in classes]
    labelled, total = [i for i in classes if t[i]], sum(t) or math.nan
    assert confusion.pixel_accuracy() == pytest.approx(sum(n[i][i] for i in classes) / total, nan_ok=True)
    mean = sum(n[i][i] / t[i] for i in labelled) / (len(labelled) or math.nan)
    assert confusion.mean_accuracy() == pytest.approx(mean, nan_ok=True)
    weighted = sum(t[i] * n[i][i] / (t[i] + predicted[i] - n[i][i]) for i in labelled) / total
    assert confusion.frequency_weighted_iou() == pytest.approx(weighted, nan_ok=True)


def test_two_shapes_are_an_error_and_not_repeated():
    with pytest.raises(ValueError, match=r"prediction is \[4, 8, 8\], label \[1, 8, 8\]: must have the same shape"):
        check_shapes(torch.zeros(4, 8, 8), torch.zeros(1, 8, 8))
