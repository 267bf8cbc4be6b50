"""Calibration: whether a network is right as often as it says."""

import torch
from torch import Tensor

from ccnet.metrics import as_ids, check_shapes
from ccnet.shapes import Float64, Int64, Integer, UInt8

LEVELS, BINS = 256, 15
"""Steps of the confidence, and bins of the error: as many as in the paper's tables."""


class Calibration:
    """The expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3), counts added over images.

    The pixels with a label fall into `BINS` bins of equal width by the network's confidence in its class. The error is the mean
    difference of accuracy and confidence of a bin, weighted with its pixels: 0 if of the pixels predicted with p a share p is
    right. `counts` int64[2, 256] has the pixels of each confidence, in 255ths, and those of them that are right. It lives on the
    CPU and only grows. A confidence is rounded to 1 / 255, so the error is off by 1 / 510 at most.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index
        self.counts: Int64[Tensor, "2 256"] = torch.zeros(2, LEVELS, dtype=torch.int64)

    def update(
        self, confidence: UInt8[Tensor, "*B H W"], prediction: Integer[Tensor, "*B H W"], label: Integer[Tensor, "*B H W"]
    ) -> None:
        """Count an image or a batch: confidence and classes as `predict_confidence` gives them. ValueError for unequal shapes."""
        prediction, label = as_ids("prediction", prediction), as_ids("label", label)
        check_shapes(prediction, label)
        if confidence.shape != label.shape:
            raise ValueError(f"confidence {tuple(confidence.shape)} and label {tuple(label.shape)}: must have the same shape")
        valid = label != self.ignore_index
        found = [
            torch.bincount(confidence[which].flatten(), minlength=LEVELS) for which in (valid, valid & (prediction == label))
        ]
        self.counts += torch.stack(found).to(self.counts.device)

    def merge(self, other: "Calibration") -> "Calibration":
        """Add the counts of `other` and return self."""
        self.counts += other.counts.to(self.counts.device)
        return self

    def bins(self) -> Float64[Tensor, "3 15"]:
        """Mean confidence, accuracy and share of the pixels of each bin; NaN, NaN and 0 for a bin without pixels."""
        levels, pixels = torch.arange(LEVELS), self.counts.double().cpu()
        # Bin m holds confidences above m / BINS up to (m + 1) / BINS, computed in whole numbers.
        bins = ((levels * BINS + LEVELS - 2) // (LEVELS - 1) - 1).clamp(min=0)
        sums = torch.zeros(3, BINS, dtype=torch.float64)
        sums.index_add_(1, bins, torch.stack([pixels[0] * levels / (LEVELS - 1), pixels[1], pixels[0]]))
        return torch.stack([sums[0] / sums[2], sums[1] / sums[2], sums[2] / max(1.0, pixels[0].sum().item())])

    def error(self) -> float:
        """The expected calibration error, 0 to 1; NaN without a pixel."""
        confidence, accuracy, share = self.bins()
        return ((accuracy - confidence).abs() * share).nansum().item() if share.any() else float("nan")
