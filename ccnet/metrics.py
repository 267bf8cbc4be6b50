"""The confusion matrix and the scores computed from it."""

import torch
from torch import Tensor

from ccnet.shapes import Bool, Float64, Int64, Integer


class ConfusionMatrix:
    """Pixel counts int64[K, K], row = class of the label, column = predicted class, without pixels labelled `ignore_index`.

    Counts only grow: `merge` two matrices, or all-reduce `counts`, then read the scores. `counts` lives on the CPU; for a
    reduction on another device move it there and assign it back. Accuracies and frequency-weighted IoU are those of Long et al.,
    "Fully Convolutional Networks for Semantic Segmentation", section 5 (https://arxiv.org/abs/1411.4038): there n_ij is
    counts[i, j] and t_i the sum of row i.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes = {num_classes}: must be at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts: Int64[Tensor, "K K"] = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Integer[Tensor, "*shape"], label: Integer[Tensor, "*shape"]) -> None:
        """Count the pixels of one batch, any shape. ValueError for unequal shapes, values that are no integers, or an id outside
        0 .. K-1 in the label or, where the label is not ignored, in the prediction."""
        prediction, label = as_ids("prediction", prediction), as_ids("label", label)
        check_shapes(prediction, label)
        valid = label != self.ignore_index
        check_ids("label", label, valid, self.num_classes, self.ignore_index)
        check_ids("prediction", prediction, valid, self.num_classes)
        pairs = label.long() * self.num_classes + prediction  # [*shape], 0 .. K * K - 1
        self.counts += count_ids(pairs, valid, self.num_classes**2).view_as(self.counts).to(self.counts.device)

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add the counts of `other` and return self. ValueError if its classes or ignore_index differ."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError(
                f"cannot merge a confusion matrix of {other.num_classes} classes (ignore_index {other.ignore_index}) "
                f"into one of {self.num_classes} (ignore_index {self.ignore_index})"
            )
        self.counts += other.counts.to(self.counts.device)
        return self

    def intersection_and_union(self) -> tuple[Int64[Tensor, " K"], Int64[Tensor, " K"]]:
        """Per class, the number of pixels that have it in label and prediction, and of those that have it in at least one."""
        intersection = self.counts.diagonal()
        return intersection, self.counts.sum(0) + self.counts.sum(1) - intersection

    def iou(self) -> Float64[Tensor, " K"]:
        """Intersection over union per class, 0 to 1; NaN for a class in neither label nor prediction."""
        intersection, union = self.intersection_and_union()
        return intersection.double() / union

    def miou(self) -> float:
        """Mean IoU over the classes that occur in label or prediction; NaN if none does."""
        return self.iou().nanmean().item()

    def miou_all_classes(self) -> float:
        """Mean IoU over all K classes, with absent ones counted as 0: the score of the published code."""
        return self.iou().nan_to_num(0.0).mean().item()

    def class_accuracy(self) -> Float64[Tensor, " K"]:
        """Share of a class's labelled pixels that are predicted right (recall), 0 to 1; NaN for a class without such pixels."""
        return self.counts.diagonal().double() / self.counts.sum(1)

    def mean_accuracy(self) -> float:
        """Mean of the class accuracies over the classes that occur in the label; NaN if none does."""
        return self.class_accuracy().nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of the valid pixels that are predicted right; NaN without valid pixels."""
        return (self.counts.diagonal().sum().double() / self.counts.sum()).item()

    def frequency_weighted_iou(self) -> float:
        """Mean of the IoUs, each weighted by its class's share of the valid pixels; NaN without valid pixels."""
        labelled = self.counts.sum(1)
        return ((labelled * self.iou().nan_to_num(0.0)).sum() / labelled.sum()).item()


def as_ids(name: str, ids: Integer[Tensor, "*shape"]) -> Integer[Tensor, "*shape"]:
    """Class ids in a dtype that torch compares and that holds 255: the given one, or int64. ValueError unless they are integers.

    Floats must not pass: `long()` makes class 0 of a mask that was divided by 255.
    """
    if not isinstance(ids, Tensor):
        raise ValueError(
            f"{name} is a {type(ids).__name__}: must be a tensor of integers (of an array: torch.from_numpy({name}))"
        )
    if ids.dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        return ids
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"{name} is {ids.dtype}{list(ids.shape)}: must be integers, the class id of every pixel, and 255 where it is ignored "
            f"(a mask of 0 and 1: {name}.long(); divided by 255, as ToTensor does: (255 * {name}).round().long(); one channel "
            f"for each class: {name}.argmax(1))"
        )
    return ids.long()


def check_shapes(prediction: Tensor, label: Tensor) -> None:
    """ValueError unless the shapes are equal: torch would broadcast the smaller one and count its pixels several times."""
    if prediction.shape != label.shape:
        raise ValueError(f"prediction is {list(prediction.shape)}, label {list(label.shape)}: must have the same shape")


def check_ids(
    name: str,
    ids: Integer[Tensor, "*shape"],
    valid: Bool[Tensor, "*shape"],
    num_classes: int,
    ignore_index: int | None = None,
) -> None:
    """ValueError naming the ids outside 0 .. K-1 among the valid pixels; the message adds that `ignore_index` is legal."""
    outside = valid & ((ids < 0) | (ids >= num_classes))
    if outside.any():
        found = torch.unique(ids[outside]).tolist()
        ignored = "" if ignore_index is None else f" or {ignore_index}, which is ignored"
        raise ValueError(f"{name} holds class id {found}: must be 0 to {num_classes - 1}{ignored}; check the label map")


def count_ids(ids: Integer[Tensor, "*shape"], where: Bool[Tensor, "*shape"], num_ids: int) -> Int64[Tensor, " num_ids"]:
    """How often each of 0 .. num_ids - 1 occurs where `where` is true."""
    # The other pixels go into an extra bin, because selecting pixels by a mask takes ten times as long.
    return torch.bincount(ids.masked_fill(~where, num_ids).flatten(), minlength=num_ids + 1)[:num_ids]
