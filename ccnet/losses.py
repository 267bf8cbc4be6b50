"""Segmentation losses as (sum, count), so that workers add both up and divide once."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Integer
from torch import Tensor

from ccnet.model import Output


def resize_logits(logits: Float[Tensor, "B K h w"], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
    """Bilinear, corners aligned, to `size` (height, width); float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(wide, size=size, mode="bilinear", align_corners=True)


def cross_entropy(
    logits: Float[Tensor, "B K h w"],
    label: Integer[Tensor, "B H W"],
    *,
    ignore_index: int = 255,
    class_weights: Float[Tensor, " K"] | None = None,
) -> tuple[Float[Tensor, ""], Float64[Tensor, ""]]:
    """Cross-entropy of the logits resized to the label: (sum over valid pixels, number of valid pixels).

    With `class_weights` each pixel counts as much as its class weighs, in the sum and in the count, so that sum / count is
    torch's weighted mean. All pixels ignored: (0, 0), with zero gradients.
    """
    target = label.long()
    valid = target != ignore_index
    resized = resize_logits(logits, (label.shape[-2], label.shape[-1]))
    total = F.cross_entropy(resized, target, weight=class_weights, ignore_index=ignore_index, reduction="sum")
    count = valid.sum() if class_weights is None else class_weights[target[valid]].sum()
    return total, count.double()


def segmentation_loss(
    output: Output, label: Integer[Tensor, "B H W"], *, aux_weight: float = 0.4, ignore_index: int = 255
) -> tuple[Float[Tensor, ""], Float64[Tensor, ""]]:
    """Main cross-entropy + aux_weight * auxiliary cross-entropy: (sum, number of valid pixels). 0.4 as published."""
    total, count = cross_entropy(output.logits, label, ignore_index=ignore_index)
    if output.aux_logits is not None:
        aux_total, _ = cross_entropy(output.aux_logits, label, ignore_index=ignore_index)
        total = total + aux_weight * aux_total
    return total, count
