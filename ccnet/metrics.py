"""The confusion matrix and what follows from it."""

import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor


class ConfusionMatrix:
    """Pixel counts int64[K, K], row = class of the label, column = predicted class; pixels labelled `ignore_index` are left out.

    Counts only ever add up: `merge` two, or all-reduce `counts`, then read the figures. `counts` lives on the CPU; move it for a
    reduction on another device and assign it back.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes = {num_classes}: must be at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts: Int64[Tensor, "K K"] = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Integer[Tensor, "*shape"], label: Integer[Tensor, "*shape"]) -> None:
        """Count the pixels of one batch, any shape. ValueError for an id outside 0 .. K-1 in the label or, where the label is
        not ignored, in the prediction."""
        valid = label != self.ignore_index
        truth, guess = label[valid].long(), prediction[valid].long()
        self._check("label", truth)
        self._check("prediction", guess)
        pairs = torch.bincount(truth * self.num_classes + guess, minlength=self.num_classes**2)  # [K * K]
        self.counts += pairs.view(self.num_classes, self.num_classes).to(self.counts.device)

    def _check(self, name: str, ids: Tensor) -> None:
        outside = ids[(ids < 0) | (ids >= self.num_classes)]
        if outside.numel():
            found = torch.unique(outside).tolist()
            ignored = f" or {self.ignore_index}, which is ignored" if name == "label" else ""
            raise ValueError(f"{name} holds class id {found}: must be 0 to {self.num_classes - 1}{ignored}; check the label map")

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add the counts of `other`; returns self."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError(
                f"cannot merge a confusion matrix of {other.num_classes} classes (ignore_index {other.ignore_index}) "
                f"into one of {self.num_classes} (ignore_index {self.ignore_index})"
            )
        self.counts += other.counts.to(self.counts.device)
        return self

    def iou(self) -> Float64[Tensor, " K"]:
        """Intersection over union per class, 0 to 1; NaN for a class in neither label nor prediction."""
        correct, union = self._correct_and_union()
        return correct / union

    def miou(self) -> float:
        """Mean IoU over the classes that occur in label or prediction; NaN when none does."""
        return self.iou().nanmean().item()

    def miou_all_classes(self) -> float:
        """Mean IoU over all K classes, absent ones counting 0: the figure of the published code."""
        correct, union = self._correct_and_union()
        return (correct / union.clamp(min=1)).mean().item()

    def pixel_accuracy(self) -> float:
        """Share of the valid pixels that are predicted right; NaN without any."""
        return (self.counts.diagonal().sum().double() / self.counts.sum().double()).item()

    def _correct_and_union(self) -> tuple[Tensor, Tensor]:
        correct = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - correct
        return correct.double(), union.double()
