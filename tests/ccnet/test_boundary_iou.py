"""Boundary IoU against the steps of the authors' code, one class and one mask at a time."""

import math

import cv2
import numpy as np
import pytest
import torch

from ccnet import ConfusionMatrix
from ccnet.boundary_iou import BoundaryIoU, boundary_distance


def blobs(seed: int, height: int, width: int, num_classes: int, ignored: float = 0.0) -> torch.Tensor:
    """Smooth areas uint8[H, W] of the classes, and 255 on about a share `ignored`."""
    random = np.random.default_rng(seed)
    scores = [cv2.GaussianBlur(random.normal(size=(height, width)), (0, 0), 3.0) for _ in range(num_classes + 1)]
    label = np.argmax(scores[:-1], axis=0).astype(np.uint8)
    label[scores[-1] < np.quantile(scores[-1], ignored)] = 255
    return torch.from_numpy(label)


def authors_boundary(mask: np.ndarray, dilation_ratio: float) -> np.ndarray:
    """bool[H, W] of one mask, by the steps of boundary_utils.py in github.com/bowenc0221/boundary-iou-api."""
    distance = max(1, round(dilation_ratio * np.hypot(*mask.shape)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & (eroded == 0)


def naive_counts(prediction: torch.Tensor, label: torch.Tensor, num_classes: int, dilation_ratio: float) -> list[list[int]]:
    counts = [[0] * num_classes, [0] * num_classes]
    guess, truth = np.where(label == 255, 255, prediction), label.numpy()
    for k in range(num_classes):
        ours, theirs = (authors_boundary(ids == k, dilation_ratio) for ids in (guess, truth))
        counts[0][k], counts[1][k] = int((ours & theirs).sum()), int((ours | theirs).sum())
    return counts


@pytest.mark.parametrize("ignored", [0.0, 0.1])
@pytest.mark.parametrize("dilation_ratio", [0.001, 0.02, 0.1])
@pytest.mark.parametrize(("height", "width"), [(60, 80), (65, 33), (7, 120)])
def test_equals_the_authors_steps_for_each_class(height, width, dilation_ratio, ignored):
    boundary, expected = BoundaryIoU(4, dilation_ratio=dilation_ratio), torch.zeros(2, 4, dtype=torch.int64)
    for seed in range(3):
        label, prediction = blobs(seed, height, width, 4, ignored), blobs(seed + 100, height, width, 4)
        prediction[:, : width // 2] = label[:, : width // 2].clamp(max=3)  # right on the left half
        boundary.update(prediction, label)
        expected += torch.tensor(naive_counts(prediction, label, 4, dilation_ratio))
    assert torch.equal(boundary.counts, expected)
    assert boundary.counts[0].sum() > 0
    torch.testing.assert_close(boundary.iou(), expected[0].double() / expected[1])


def test_the_boundary_of_a_square_by_hand():
    label = torch.zeros(8, 8, dtype=torch.uint8)
    label[2:6, 2:6] = 1  # 4 x 4 pixels: 12 of them within 1 pixel of its outline
    boundary = BoundaryIoU(3)
    boundary.update(label, label)
    assert boundary.counts[:, 1].tolist() == [12, 12]
    assert boundary.counts[:, 0].tolist() == [48, 48]  # 28 at the image's edge, 20 around the square
    assert boundary.iou().tolist() == pytest.approx([1.0, 1.0, math.nan], nan_ok=True)
    assert boundary.miou() == 1.0


def test_a_shift_of_two_pixels_shows_where_the_iou_hardly_moves():
    label = torch.zeros(200, 200, dtype=torch.uint8)
    label[:, 100:] = 1
    prediction = label.roll(2, dims=1)
    prediction[:, :2] = 0
    boundary, confusion = BoundaryIoU(2, dilation_ratio=0.005), ConfusionMatrix(2)
    boundary.update(prediction, label)
    confusion.update(prediction, label)
    assert confusion.miou() > 0.97
    assert boundary.miou() < 0.6


def test_a_perfect_prediction_scores_one_next_to_ignored_pixels():
    label = blobs(0, 60, 80, 4, ignored=0.2)
    boundary = BoundaryIoU(4)
    boundary.update(torch.where(label == 255, 3, label), label)
    assert boundary.miou() == 1.0


def test_in_a_boundary_wider_than_the_image_it_is_the_iou():
    label, prediction = blobs(0, 40, 50, 3, ignored=0.1), blobs(1, 40, 50, 3)
    boundary, confusion = BoundaryIoU(3, dilation_ratio=1.0), ConfusionMatrix(3)
    boundary.update(prediction, label)
    confusion.update(prediction, label)
    assert torch.equal(boundary.counts, torch.stack(confusion.intersection_and_union()))


def test_a_batch_its_images_and_their_merged_counts_are_the_same():
    label = torch.stack([blobs(seed, 60, 80, 4) for seed in range(2)])
    prediction = torch.stack([blobs(seed, 60, 80, 4) for seed in (2, 3)])
    batch, first, second = (BoundaryIoU(4) for _ in range(3))
    batch.update(prediction, label)
    first.update(prediction[0], label[0])
    second.update(prediction[1], label[1])
    assert torch.equal(first.merge(second).counts, batch.counts)


@pytest.mark.parametrize(
    ("height", "width", "ratio", "distance"), [(1024, 2048, 0.02, 46), (360, 480, 0.02, 12), (9, 9, 0.02, 1)]
)
def test_the_distance_follows_the_diagonal(height, width, ratio, distance):
    assert boundary_distance(height, width, ratio) == distance


def test_without_pixels_it_is_not_a_number():
    boundary = BoundaryIoU(2)
    boundary.update(torch.zeros(9, 9, dtype=torch.uint8), torch.full((9, 9), 255, dtype=torch.uint8))
    assert boundary.counts.tolist() == [[0, 0], [0, 0]]
    assert math.isnan(boundary.miou())


def test_what_is_out_of_range_is_named():
    ids = torch.full((9, 9), 7, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"label holds class id \[7\]: must be 0 to 4 or 255"):
        BoundaryIoU(5).update(ids % 5, ids)
    with pytest.raises(ValueError, match=r"prediction holds class id \[7\]"):
        BoundaryIoU(5).update(ids, ids % 5)
    with pytest.raises(ValueError, match=r"dilation_ratio = 2.0: must be"):
        BoundaryIoU(5, dilation_ratio=2.0)
    with pytest.raises(ValueError, match="num_classes = 0"):
        BoundaryIoU(0)
    with pytest.raises(ValueError, match="cannot merge"):
        BoundaryIoU(5).merge(BoundaryIoU(5, dilation_ratio=0.005))
