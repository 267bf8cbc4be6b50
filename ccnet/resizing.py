"""Score maps and labels resized to another size.

The published code aligns the corners: the centres of the first and the last cell lie on those of the first and the last pixel.
Most networks of mmsegmentation align the edges instead (align_corners=False): each cell covers an equal part of the pixels. A
network learns where its cells are placed, so `align_corners` is a property of the network (see `build_ccnet`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ccnet.shapes import Float, Float64, Integer


def resize_logits(
    logits: Float[Tensor, "B K h w"], size: tuple[int, int], *, align_corners: bool = True
) -> Float[Tensor, "B K H W"]:
    """The logits at `size` (height, width), bilinear, float32 or wider. No copy if size and dtype fit."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if (wide.shape[-2], wide.shape[-1]) == size:
        return wide
    return F.interpolate(wide, size=size, mode="bilinear", align_corners=align_corners)


def resize_label(
    label: Integer[Tensor, "B H W"], size: tuple[int, int], *, align_corners: bool = True
) -> Integer[Tensor, "B h w"]:
    """The label at `size` (height, width), nearest neighbour.

    With corners aligned it is every 8th pixel from 8k + 1 to k + 1, otherwise the 5th of every 8 pixels from 8k to k.
    """
    coordinates = aligned_coordinates if align_corners else _centres
    rows, columns = (
        # Halves are rounded up, as in scipy.ndimage.zoom with order 0.
        torch.floor(coordinates(old, new, label.device) + 0.5).long()
        for old, new in zip(label.shape[-2:], size, strict=True)
    )
    return label[:, rows[:, None], columns]


def _centres(old: int, new: int, device: torch.device) -> Float64[Tensor, " n"]:
    """Coordinates of the centres of `new` equal parts of `old` points."""
    centres = (torch.arange(new, dtype=torch.float64, device=device) + 0.5) * (old / new) - 0.5
    return centres.clamp(max=old - 1)


def aligned_coordinates(old: int, new: int, device: torch.device) -> Float64[Tensor, " n"]:
    """Coordinates of `new` evenly spaced points among `old` ones, first on first and last on last; all in [0, old - 1]."""
    spacing = (old - 1) / (new - 1) if new > 1 else 0.0
    # Rounding can move the last point past the end, by a unit in the last place.
    return (torch.arange(new, dtype=torch.float64, device=device) * spacing).clamp(max=old - 1)
