"""Online hard example mining: cross-entropy over the pixels that the net is least sure of."""

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ccnet.distributed import world_size
from ccnet.losses.cross_entropy import fitting_weights, pixel_weights
from ccnet.losses.global_batch import kth_smallest
from ccnet.metrics import as_ids
from ccnet.resizing import aligned_coordinates, resize_label, resize_logits
from ccnet.shapes import Float, Float64, Integer


@dataclass(frozen=True)
class Ohem:
    """Which pixels are hard: those whose true class has a probability of at most `thresh`, but at least about `min_kept`.

    `min_kept` counts pixels of the global batch; the published code counts them per GPU: its 100,000 on 4 GPUs is 400,000 here.
    The threshold is computed on every `factor`-th row and column, for min_kept // factor**2 pixels; 1 uses every pixel.
    The defaults are those of the published class. ValueError names the setting that is out of range.
    """

    thresh: float = 0.7
    min_kept: int = 100_000
    factor: int = 8

    def __post_init__(self) -> None:
        if not 0.0 < self.thresh <= 1.0:
            raise ValueError(f"thresh = {self.thresh}: must be in (0, 1], it is a probability (0.7 as published)")
        if self.min_kept < 0:
            raise ValueError(f"min_kept = {self.min_kept}: must be >= 0 pixels of the global batch (with 0 thresh alone decides)")
        if self.factor < 1:
            raise ValueError(f"factor = {self.factor}: must be >= 1 (8 as published, 1 takes every pixel)")

    def problem(self, num_images: int, height: int, width: int) -> str | None:
        """Why these settings cannot work on a global batch of `num_images` labels of this size, with the fix; else None."""
        area = self.factor**2
        num_sampled = num_images * math.prod(sampled_size(height, width, self.factor))
        if self.thresh == 1.0:
            return "thresh = 1.0: keeps every pixel, which makes OHEM plain cross-entropy; set less than 1, or leave OHEM out"
        if 0 < self.min_kept < area:
            fix = f"set at least factor**2 = {area}, or 0 to use thresh alone"
            return f"min_kept = {self.min_kept}: rounds to no pixel at all; {fix}"
        if num_sampled and self.min_kept // area >= num_sampled:
            return (
                f"min_kept = {self.min_kept}: at least all pixels of the global batch, which makes OHEM plain cross-entropy; "
                f"set less than {num_sampled * area}, or leave OHEM out"
            )
        return None


def ohem_cross_entropy(
    logits: Float[Tensor, "B K h w"],
    label: Integer[Tensor, "B H W"],
    *,
    thresh: float = 0.7,
    min_kept: int = 100_000,
    factor: int = 8,
    ignore_index: int = 255,
    class_weights: Float[Tensor, " K"] | None = None,
    align_corners: bool = True,
) -> tuple[Float[Tensor, ""], Float64[Tensor, ""]]:
    """Cross-entropy over the hard pixels of the global batch: (sum over the pixels kept, number kept). See `Ohem`.

    p is the soft-max probability of the true class, from the logits resized to the label. The valid pixels with p <= threshold
    are kept. The threshold is computed on the subsample. It is 1, which keeps all, if min_kept // factor**2 reaches the number
    of valid pixels; otherwise it is the larger of `thresh` and the (min_kept // factor**2)-th smallest p, exact over all workers.

    This is as published (`CriterionOhemDSN`), except for `min_kept` and for class weights, which the published loss ignores: here
    they weigh sum and count but do not affect the choice. If no pixel is kept the result is (0, 0) with zero gradients, where the
    published code has NaN. A pixel whose p is NaN is kept, so that the loss shows it.

    Every worker must call it equally often; it takes 2 collectives in float32, 4 in float64. ValueError as of `Ohem`, and for a
    label that is not of integers; warns if `thresh` and `min_kept` make no sense for the batch (`Ohem.problem`).
    """
    settings = Ohem(thresh, min_kept, factor)
    target = as_ids("label", label).long()
    scores = resize_logits(logits, (label.shape[-2], label.shape[-1]), align_corners=align_corners)
    pixel_loss = F.cross_entropy(scores, target, ignore_index=ignore_index, reduction="none")  # [B, H, W]
    probability = torch.exp(-pixel_loss.detach())
    if factor == 1:
        sampled, sampled_target = probability, target
    else:
        sampled, sampled_target = sample_probability(scores.detach(), target, factor=factor, ignore_index=ignore_index)
    if problem := settings.problem(len(target) * world_size(), target.shape[1], target.shape[2]):
        warnings.warn(problem, stacklevel=2)
    wanted = min_kept // factor**2
    smallest, num_valid = kth_smallest(sampled.flatten(), (sampled_target != ignore_index).flatten(), wanted)
    threshold = torch.where(num_valid <= wanted, 1.0, smallest.clamp(min=thresh))
    # Not "p <= threshold", which would silently drop a NaN.
    kept = (target != ignore_index) & ~(probability > threshold)
    weights = pixel_weights(target, kept, fitting_weights(class_weights, scores))
    return (pixel_loss * weights).sum(), weights.sum(dtype=torch.float64)


def sampled_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Number of rows and of columns of the subsample."""
    return max(1, round(height / factor)), max(1, round(width / factor))


@torch.no_grad()
def sample_probability(
    scores: Float[Tensor, "B K H W"], target: Integer[Tensor, "B H W"], *, factor: int, ignore_index: int
) -> tuple[Float[Tensor, "B h w"], Integer[Tensor, "B h w"]]:
    """Probability of the true class on a subsample of round(size / factor) rows and columns, and that class.

    The class is that of the nearest pixel. Its probability is interpolated linearly between the four pixels around; the soft-max
    is computed at these alone. Equals scipy.ndimage.zoom (order 1 of the probabilities, order 0 of the labels) as the published
    code uses it, except for an error at the end: where rounding moves the last coordinate past the last pixel (lengths 480, 705,
    713, 768 and others, not 769) scipy reads probability 0 and class 0 along that edge. This error is not reproduced.
    """
    size = sampled_size(target.shape[1], target.shape[2], factor)
    nearest = resize_label(target, size)  # [B, h, w]
    corners, shares = [], []
    for old, new in zip(target.shape[-2:], size, strict=True):
        coordinate = aligned_coordinates(old, new, scores.device)
        before = coordinate.long()
        corners.append(torch.stack([before, (before + 1).clamp(max=old - 1)], dim=1).flatten())  # [2 new]
        shares.append((coordinate - before).to(scores.dtype))  # [new]
    around = scores[:, :, corners[0][:, None], corners[1]]  # [B, K, 2h, 2w]
    truth = nearest.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)  # [B, 2h, 2w]
    # By the same function as at full resolution, because the threshold found here is compared with those probabilities.
    p = torch.exp(-F.cross_entropy(around, truth, ignore_index=ignore_index, reduction="none"))
    p = p.reshape(len(p), size[0], 2, size[1], 2)  # [B, h, 2, w, 2]
    p = torch.lerp(p[:, :, 0], p[:, :, 1], shares[0][:, None, None])  # [B, h, w, 2]
    return torch.lerp(p[..., 0], p[..., 1], shares[1]), nearest
