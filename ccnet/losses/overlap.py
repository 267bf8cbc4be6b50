"""Losses on the overlap of predicted and true regions, per image: exact for any number of workers without a collective."""

import torch
from torch import Tensor

from ccnet.metrics import as_ids
from ccnet.resizing import resize_logits
from ccnet.shapes import Bool, Float, Float64, Integer


def dice(
    logits: Float[Tensor, "B K h w"], label: Integer[Tensor, "B H W"], *, ignore_index: int = 255, align_corners: bool = True
) -> tuple[Float[Tensor, ""], Float64[Tensor, ""]]:
    """1 - 2 sum(p g) / (sum(p^2) + sum(g^2)) over the valid pixels of an image (Milletari et al. 2016, V-Net, arXiv 1606.04797).

    p is the soft-max probability of a class, g is 1 where it is the true class, else 0. The loss of an image is the mean over the
    classes present in its label. Returns (sum over images, number of images with a valid pixel). An id that is no class counts
    as background. ValueError if logits and label have different numbers of images, or if the label is not of integers.
    """
    probability, foreground, valid = _regions(logits, label, ignore_index, align_corners)
    size = foreground.sum(2)  # [B, K]
    overlap = (probability * foreground).sum(2)
    squares = (probability.square() * valid).sum(2)
    # The clamp only affects absent classes: a class that is present has a denominator of at least 1.
    return _mean_over_present(1.0 - 2.0 * overlap / (squares + size).clamp(min=1), size > 0)


def lovasz_softmax(
    logits: Float[Tensor, "B K h w"], label: Integer[Tensor, "B H W"], *, ignore_index: int = 255, align_corners: bool = True
) -> tuple[Float[Tensor, ""], Float64[Tensor, ""]]:
    """The Lovasz extension of the Jaccard loss 1 - IoU at the errors |g - p| (Berman et al. 2018, arXiv 1705.08790).

    p, g, the averages and the errors raised are as in `dice`: "present" and "per image" in the paper's code. The errors of a
    class are taken in falling order. Each is weighted by what its pixel, once wrong, adds to the class's Jaccard loss: 1 / union
    for a pixel of the class, intersection / (union * (union - 1)) for another. Differences of the loss would cancel in float32.
    """
    probability, foreground, valid = _regions(logits, label, ignore_index, align_corners)
    # Ignored pixels come last, where the intersection is already 0: their weight is 0.
    error = torch.where(valid, (foreground.to(probability.dtype) - probability).abs(), -1.0)  # [B, K, P]
    error, order = error.sort(dim=2, descending=True)
    inside = foreground.gather(2, order)
    size = foreground.sum(2, dtype=error.dtype)  # [B, K]
    intersection = size[..., None] - inside.cumsum(2, dtype=error.dtype)  # [B, K, P]
    union = size[..., None] + (~inside).cumsum(2, dtype=error.dtype)
    weight = torch.where(inside, 1.0 / union, intersection / (union * (union - 1.0)).clamp(min=1))
    return _mean_over_present((error * weight).sum(2), size > 0)


def _regions(
    logits: Tensor, label: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Float[Tensor, "B K P"], Bool[Tensor, "B K P"], Bool[Tensor, "B 1 P"]]:
    """For each pixel of the label: its soft-max probabilities, whether it is valid and of class k, whether it is valid."""
    if len(logits) != len(label):
        raise ValueError(f"logits of {len(logits)} images and labels of {len(label)}: must be equal numbers")
    scores = resize_logits(logits, (label.shape[-2], label.shape[-1]), align_corners=align_corners)
    probability = scores.softmax(1).flatten(2)  # [B, K, P]
    target = as_ids("label", label).flatten(1)[:, None]  # [B, 1, P]
    valid = target != ignore_index
    classes = torch.arange(logits.shape[1], device=label.device)[:, None]  # [K, 1]
    return probability, (target == classes) & valid, valid


def _mean_over_present(loss: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> tuple[Float[Tensor, ""], Float64[Tensor, ""]]:
    num_present = present.sum(1)  # [B]
    per_image = torch.where(present, loss, 0.0).sum(1) / num_present.clamp(min=1)
    return per_image.sum(), (num_present > 0).sum(dtype=torch.float64)
