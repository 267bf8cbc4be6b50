"""Plain cross-entropy, with or without class weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ccnet.metrics import as_ids
from ccnet.resizing import resize_logits
from ccnet.shapes import Bool, Float, Float64, Integer


def cross_entropy(
    logits: Float[Tensor, "B K h w"],
    label: Integer[Tensor, "B H W"],
    *,
    ignore_index: int = 255,
    class_weights: Float[Tensor, " K"] | None = None,
    align_corners: bool = True,
) -> tuple[Float[Tensor, ""], Float64[Tensor, ""]]:
    """Cross-entropy of the logits resized to the label: (sum over valid pixels, number of valid pixels).

    `align_corners` is the network's, as in all losses.

    With `class_weights` each pixel counts with the weight of its class, in the sum and in the count, so that sum / count is
    torch's weighted mean. If all pixels are ignored the result is (0, 0), with zero gradients. ValueError for a label that is not
    of integers.
    """
    target = as_ids("label", label).long()
    resized = resize_logits(logits, (label.shape[-2], label.shape[-1]), align_corners=align_corners)
    weights = fitting_weights(class_weights, resized)
    total = F.cross_entropy(resized, target, weight=weights, ignore_index=ignore_index, reduction="sum")
    return total, pixel_weights(target, target != ignore_index, weights).sum(dtype=torch.float64)


def fitting_weights(class_weights: Float[Tensor, " n"] | None, logits: Float[Tensor, "B K H W"]) -> Float[Tensor, " n"] | None:
    """The class weights on the logits' device, in their dtype but at least float32. ValueError unless there is one per class."""
    if class_weights is None:
        return None
    if len(class_weights) != logits.shape[1]:
        raise ValueError(f"class_weights has {len(class_weights)} values: must have one for each of {logits.shape[1]} classes")
    # non_blocking, because otherwise the host would wait for the device at every step.
    return class_weights.to(logits.device, torch.promote_types(logits.dtype, torch.float32), non_blocking=True)


def pixel_weights(
    target: Integer[Tensor, "B H W"], counted: Bool[Tensor, "B H W"], class_weights: Float[Tensor, " K"] | None
) -> Bool[Tensor, "B H W"] | Float[Tensor, "B H W"]:
    """Weight of each pixel: 0 where not `counted`, else 1 or the weight of its class."""
    if class_weights is None:
        return counted
    # Not selected by a boolean mask: the size of that result depends on values, and the host would have to wait for it.
    return torch.where(counted, class_weights[torch.where(counted, target, 0)], 0.0)
