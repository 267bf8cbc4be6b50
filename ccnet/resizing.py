"""Score maps and labels resized to another size, with corners aligned as everywhere in the published code."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Integer
from torch import Tensor


def resize_logits(logits: Float[Tensor, "B K h w"], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
    """The logits at `size` (height, width), bilinear, corners aligned, float32 or wider. No copy if size and dtype fit."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if (wide.shape[-2], wide.shape[-1]) == size:
        return wide
    return F.interpolate(wide, size=size, mode="bilinear", align_corners=True)


def resize_label(label: Integer[Tensor, "B H W"], size: tuple[int, int]) -> Integer[Tensor, "B h w"]:
    """The label at `size` (height, width), nearest neighbour, corners aligned: from 8k + 1 to k + 1 it is every 8th pixel."""
    rows, columns = (
        # Halves are rounded up, as in scipy.ndimage.zoom with order 0.
        torch.floor(aligned_coordinates(old, new, label.device) + 0.5).long()
        for old, new in zip(label.shape[-2:], size, strict=True)
    )
    return label[:, rows[:, None], columns]


def aligned_coordinates(old: int, new: int, device: torch.device) -> Float64[Tensor, " n"]:
    """Coordinates of `new` evenly spaced points among `old` ones, first on first and last on last; all in [0, old - 1]."""
    spacing = (old - 1) / (new - 1) if new > 1 else 0.0
    # Rounding can move the last point past the end, by a unit in the last place.
    return (torch.arange(new, dtype=torch.float64, device=device) * spacing).clamp(max=old - 1)
