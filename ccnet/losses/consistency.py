"""The category-consistent loss: it pulls features of one class together and separates the class means."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ccnet.distributed import sum_over_workers, world_size
from ccnet.metrics import as_ids
from ccnet.resizing import resize_label
from ccnet.shapes import Bool, Float, Float64, Integer


def category_consistent(
    features: Float[Tensor, "B D h w"],
    label: Integer[Tensor, "B H W"],
    *,
    num_classes: int | None = None,
    delta_v: float = 0.5,
    delta_d: float = 1.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.001,
    per_image: bool = False,
    ignore_index: int = 255,
    align_corners: bool = True,
) -> tuple[Float[Tensor, ""], Float64[Tensor, ""]]:
    """alpha * l_var + beta * l_dis + gamma * l_reg as (sum, count); from the TPAMI version of CCNet, arXiv 1811.11721v2.

    h_i is the feature of a valid pixel, mu_c the mean feature of class c, C the classes present, |.| the L2 norm:
    l_var = mean over C of the mean over its pixels of phi(|h_i - mu_c|), phi(d) = 0 up to delta_v, (d - delta_v)^2 up to delta_d,
    d - delta_d + (delta_d - delta_v)^2 above; l_dis = mean over ordered pairs a != b of max(0, 2 delta_d - |mu_a - mu_b|)^2,
    0 with fewer than two classes; l_reg = mean over C of |mu_c|. Gradients flow through mu_c. Constants as in the paper.

    C and mu_c are those of the global batch (in the paper: of the mini-batch); the counts of all workers add up to 1. With
    `per_image`, the other reading of the paper, each image has its own C and mu_c, and sum / count is the mean over images; an
    image without a valid pixel has 0. A label of another size is resized to that of the features (`resize_label`). Its ids must
    be below `num_classes`; None allows all ids up to 254 but takes more memory. Norms have gradient 0 at 0. Computed in float32
    or wider.

    Every worker must call it equally often: over the global batch it takes one collective in each direction. ValueError unless
    0 <= delta_v < delta_d, if features and label have different numbers of images, or if the label is not of integers.
    """
    if not 0.0 <= delta_v < delta_d:
        raise ValueError(f"delta_v = {delta_v}, delta_d = {delta_d}: must be 0 <= delta_v < delta_d (0.5 and 1.5 in the paper)")
    if len(features) != len(label):
        raise ValueError(f"features of {len(features)} images and labels of {len(label)}: must be equal numbers")
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    size = (features.shape[-2], features.shape[-1])
    target = resize_label(as_ids("label", label), size, align_corners=align_corners).long().flatten(1)  # [B, h w]
    pixels = wide.flatten(2).mT  # [B, h w, D]
    if not per_image:
        pixels, target = pixels.flatten(0, 1)[None], target.flatten()[None]  # [G = 1, B h w, D], [1, B h w]
    ignored = 255 if num_classes is None else num_classes
    # Ids beyond the classes skip the ignored slot; they lie outside the table, so that indexing it is an error.
    slot = torch.where(target != ignore_index, target + (target >= ignored), ignored)  # [G, P]
    means, num_pixels = _class_means(pixels, slot, ignored + 1, over_workers=not per_image)
    present = num_pixels[:, :-1] > 0  # [G, K], without the slot of ignored pixels
    num_present = present.sum(1).clamp(min=1)  # [G]

    distance = torch.linalg.vector_norm(pixels - _rows(means, slot), dim=-1)  # [G, P]
    # Weight of one pixel of each class; 0 in the slot of ignored pixels.
    share = F.pad(1.0 / (num_pixels[:, :-1].clamp(min=1) * num_present[:, None]), (0, 1))  # [G, K + 1]
    var = (_phi(distance, delta_v, delta_d) * share.gather(1, slot)).sum(1)  # [G]
    dis = _between(means[:, :-1], present, 2 * delta_d)
    reg = (torch.linalg.vector_norm(means[:, :-1], dim=-1) * present).sum(1) / num_present  # [G]
    # Each worker has its own pixels of the global batch, but all have the same means: terms of the means must count once.
    once = 1.0 if per_image else 1.0 / world_size()
    total = (alpha * var + once * (beta * dis + gamma * reg)).sum()
    return total, torch.full_like(total, once * len(var), dtype=torch.float64)


def _class_means(
    pixels: Float[Tensor, "G P D"], slot: Integer[Tensor, "G P"], num_slots: int, *, over_workers: bool
) -> tuple[Float[Tensor, "G S D"], Float[Tensor, "G S"]]:
    """Mean feature of the pixels in each slot, 0 for an empty slot, and the number of these pixels."""
    counted = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=2)  # [G, P, D + 1]
    totals = counted.new_zeros(counted.shape[0], num_slots, counted.shape[2])
    totals = totals.scatter_add(1, slot[..., None].expand_as(counted), counted)  # [G, S, D + 1]
    if over_workers:
        totals = sum_over_workers(totals)
    num_pixels = totals[..., -1].detach()
    return totals[..., :-1] / num_pixels.clamp(min=1)[..., None], num_pixels


def _rows(table: Float[Tensor, "G S D"], slot: Integer[Tensor, "G P"]) -> Float[Tensor, "G P D"]:
    return table.gather(1, slot[..., None].expand(-1, -1, table.shape[2]))


def _phi(d: Float[Tensor, "G P"], delta_v: float, delta_d: float) -> Float[Tensor, "G P"]:
    return torch.where(d > delta_d, d - delta_d + (delta_d - delta_v) ** 2, (d - delta_v).clamp(min=0).square())


def _between(means: Float[Tensor, "G K D"], present: Bool[Tensor, "G K"], margin: float) -> Float[Tensor, " G"]:
    """Mean of max(0, margin - distance)^2 over ordered pairs of different classes present."""
    distance: Tensor = _PairDistances.apply(means)  # type: ignore[no-untyped-call]
    pairs = (present[:, :, None] & present[:, None, :]).triu(1)  # [G, K, K], each unordered pair once
    hinge = (margin - distance).clamp(min=0).square() * pairs
    return hinge.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


class _PairDistances(torch.autograd.Function):
    """y[g, a, b] = |x[g, a] - x[g, b]|, computed from the differences themselves, with gradient 0 at 0.

    torch.cdist has either this accuracy and, on GPUs, a [G, K, K, D] buffer in backward, or neither of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # [G, K, K]
        ctx.save_for_backward(x, distance)
        return distance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, distance = ctx.saved_tensors
        pull = torch.where(distance > 0, grads[0] / distance, 0.0)
        pull = pull + pull.mT  # [G, K, K]
        gradient: Tensor = pull.sum(2, keepdim=True) * x - pull @ x  # [G, K, D]
        return gradient
