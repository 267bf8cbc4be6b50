"""Boundary IoU: how well the outlines fit. The plain IoU of a large area hardly depends on them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ccnet.metrics import as_ids, check_ids, check_shapes, count_ids
from ccnet.shapes import Bool, Float64, Int64, Integer


class BoundaryIoU:
    """Boundary IoU per class (Cheng et al. 2021, https://arxiv.org/abs/2103.16562), counts added over images.

    |(G_d and G) and (P_d and P)| / |(G_d and G) or (P_d and P)|: G and P are a class's pixels in label and prediction. G_d and
    P_d are the pixels within d of their outlines, d = `dilation_ratio` x image diagonal, rounded, at least 1 pixel. The distance
    is the larger of the distances in rows and in columns, and the image's edge counts as an outline, as in the authors' code
    (https://github.com/bowenc0221/boundary-iou-api), whose ratios are 0.02 for COCO and LVIS and 0.005 for Cityscapes.
    `counts` int64[2, K], intersection and union, lives on the CPU and only grows.

    Where we differ: the authors compare single objects and divide for each; here a class's pixels are summed over all images.
    Pixels that the label ignores are ignored in the prediction too, before outlines are drawn. Otherwise a perfect prediction
    next to ignored pixels would score less than 1.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, dilation_ratio: float = 0.02) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes = {num_classes}: must be at least 1")
        if not 0 < dilation_ratio <= 1:
            raise ValueError(f"dilation_ratio = {dilation_ratio}: must be above 0 and at most 1 (published: 0.02)")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.dilation_ratio = dilation_ratio
        self.counts: Int64[Tensor, "2 K"] = torch.zeros(2, num_classes, dtype=torch.int64)

    def update(self, prediction: Integer[Tensor, "*B H W"], label: Integer[Tensor, "*B H W"]) -> None:
        """Count the boundary pixels of one image or one batch. ValueError as of `ConfusionMatrix.update`."""
        prediction, label = as_ids("prediction", prediction), as_ids("label", label)
        check_shapes(prediction, label)
        valid = label != self.ignore_index
        check_ids("label", label, valid, self.num_classes, self.ignore_index)
        check_ids("prediction", prediction, valid, self.num_classes)
        distance = boundary_distance(label.shape[-2], label.shape[-1], self.dilation_ratio)
        in_label = class_boundary(label, distance) & valid
        in_prediction = class_boundary(torch.where(valid, prediction, self.ignore_index), distance) & valid
        intersection = count_ids(label, in_label & in_prediction & (label == prediction), self.num_classes)
        either = count_ids(label, in_label, self.num_classes) + count_ids(prediction, in_prediction, self.num_classes)
        self.counts += torch.stack([intersection, either - intersection]).to(self.counts.device)  # [2, K]

    def merge(self, other: "BoundaryIoU") -> "BoundaryIoU":
        """Add the counts of `other` and return self. ValueError if the settings differ."""
        theirs, ours = ((b.num_classes, b.ignore_index, b.dilation_ratio) for b in (other, self))
        if theirs != ours:
            raise ValueError(f"cannot merge boundary counts of (classes, ignore_index, dilation_ratio) = {theirs} into {ours}")
        self.counts += other.counts.to(self.counts.device)
        return self

    def iou(self) -> Float64[Tensor, " K"]:
        """Boundary IoU per class, 0 to 1; NaN for a class in neither label nor prediction."""
        return self.counts[0].double() / self.counts[1]

    def miou(self) -> float:
        """Mean boundary IoU over the classes that occur in label or prediction; NaN if none does."""
        return self.iou().nanmean().item()


def boundary_distance(height: int, width: int, dilation_ratio: float) -> int:
    """d in pixels: `dilation_ratio` of the image diagonal, rounded, at least 1."""
    return max(1, round(dilation_ratio * math.hypot(height, width)))


def class_boundary(ids: Integer[Tensor, "*B H W"], distance: int) -> Bool[Tensor, "*B H W"]:
    """Whether a pixel lies within `distance` of another class or of the image's edge.

    One pass serves all classes: a pixel is inside its class if the smallest and the largest id in the square with sides
    of 2 d + 1 pixels around it are equal.
    """
    height, width = ids.shape[-2:]
    boundary = torch.ones_like(ids, dtype=torch.bool)
    if min(height, width) > 2 * distance:
        outlined = _extreme(ids, 2 * distance + 1, torch.minimum) != _extreme(ids, 2 * distance + 1, torch.maximum)
        boundary[..., distance : height - distance, distance : width - distance] = outlined
    return boundary


def _extreme(ids: Tensor, side: int, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Smallest or largest id, by `pick`, of every square of `side` pixels: [..., H - side + 1, W - side + 1].

    Each pass doubles the length that one entry covers, so that few passes are needed.
    """
    for axis in (-2, -1):
        covered = 1
        while covered < side:
            shift = min(covered, side - covered)
            length = ids.shape[axis] - shift
            ids = pick(ids.narrow(axis, 0, length), ids.narrow(axis, shift, length))
            covered += shift
    return ids
