"""How far the mIoU would move with other images of the same kind: an interval by resampling the images."""

import torch
from jaxtyping import Int64
from torch import Tensor

# Resamples at a time: with 5000 images and 150 classes some 20 MB are alive at once.
RESAMPLES_PER_CHUNK = 256


def bootstrap_interval(
    intersection: Int64[Tensor, "N K"],
    union: Int64[Tensor, "N K"],
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high) of the mIoU: percentile interval of the bootstrap (Efron 1979, https://doi.org/10.1214/aos/1176344552).

    Row n holds the pixels per class that label and prediction of image n share, and that either has. Every resample draws N
    images with replacement, adds their counts, divides once and averages the classes that occur in it; a resample without a valid
    pixel has no mIoU and is left out. (NaN, NaN) without images. The interval is about the choice of images; the training seed
    is another source of chance. ValueError for a level outside 0 .. 1 or fewer than one resample.
    """
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"level = {level}, num_resamples = {num_resamples}: must be between 0 and 1, and at least 1")
    num_images = len(union)
    if num_images == 0:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    counts = torch.cat([intersection, union], dim=1).double().cpu()  # [N, 2 K]; sums are exact below 2**53 pixels
    mious = []
    for start in range(0, num_resamples, RESAMPLES_PER_CHUNK):
        rows = min(RESAMPLES_PER_CHUNK, num_resamples - start)
        drawn = [torch.randint(num_images, (num_images,), generator=generator) for _ in range(rows)]
        times = torch.stack([torch.bincount(images, minlength=num_images) for images in drawn]).double()  # [rows, N]
        shared, either = (times @ counts).chunk(2, dim=1)  # [rows, K] each
        mious.append((shared / either).nanmean(dim=1))  # [rows]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(mious).nanquantile(tails).tolist()
    return low, high
