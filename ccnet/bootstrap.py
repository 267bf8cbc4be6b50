"""Intervals of the mIoU by resampling the images: how far it would move with other images of the same kind."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ccnet.shapes import Float64, Int64

# Resamples computed at once: with 5000 images and 150 classes they take about 20 MB.
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

    Row n counts the pixels of image n per class: `intersection` those that have the class in label and prediction, `union` those
    that have it in at least one of them. Every resample draws N images with replacement, adds their counts, divides once and
    averages over the classes that occur in it. A resample without a valid pixel has no mIoU and is ignored. Without images the
    result is (NaN, NaN). The interval reflects the choice of images; the training seed is a separate source of variation.
    ValueError for a level outside 0 .. 1 or fewer than one resample.
    """
    return bootstrap_intervals(intersection, union, num_resamples=num_resamples, level=level, seed=seed)[0]


def bootstrap_intervals(
    intersection: Int64[Tensor, "N K"],
    union: Int64[Tensor, "N K"],
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """(low, high) of the mIoU, as `bootstrap_interval`, and of the IoU of each class, from the same resamples.

    A resample that lacks a class does not count for it. The interval of a class that occurs in no image is (NaN, NaN).
    """
    tails = _tails(level, num_resamples)
    if not len(union):
        return _unknown(union.shape[1])
    found = []
    for (iou,) in _resampled([(intersection, union)], num_resamples, seed):  # [rows, K]
        found.append(torch.cat([iou.nanmean(dim=1, keepdim=True), iou], dim=1))
    return _bounds(torch.cat(found), tails)


def bootstrap_differences(
    first: tuple[Int64[Tensor, "N K"], Int64[Tensor, "N K"]],
    second: tuple[Int64[Tensor, "N K"], Int64[Tensor, "N K"]],
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """(low, high) of the second mIoU minus the first, and of each class, for two networks on the same images.

    Both are (intersection, union) as for `bootstrap_interval`, with the same image in row n. Each resample draws the same images
    for both, so what makes an image hard for both does not widen the interval. A class that a resample lacks has no difference
    there; where all lack it, and without images, the interval is (NaN, NaN). Errors as `bootstrap_interval`.
    """
    tails, num_classes = _tails(level, num_resamples), first[1].shape[1]
    if not len(first[1]):
        return _unknown(num_classes)
    found = []
    for before, after in _resampled([first, second], num_resamples, seed):
        found.append(torch.cat([after.nanmean(dim=1, keepdim=True) - before.nanmean(dim=1, keepdim=True), after - before], dim=1))
    return _bounds(torch.cat(found), tails)


def _unknown(num_classes: int) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    return (float("nan"), float("nan")), [(float("nan"), float("nan"))] * num_classes


def _bounds(
    found: Float64[Tensor, "resamples _"], tails: Float64[Tensor, "2"]
) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """The quantiles `tails` of the first column, and of each other one."""
    (low, high), *classes = found.nanquantile(tails, dim=0).T.tolist()
    return (low, high), [(low, high) for low, high in classes]


def _tails(level: float, num_resamples: int) -> Float64[Tensor, "2"]:
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"level = {level}, num_resamples = {num_resamples}: must be between 0 and 1, and at least 1")
    return torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)


def _resampled(
    counts: list[tuple[Int64[Tensor, "N K"], Int64[Tensor, "N K"]]], num_resamples: int, seed: int
) -> Iterator[list[Float64[Tensor, "rows K"]]]:
    """IoU per class of some resamples at a time, for each of the networks."""
    generator, num_images = torch.Generator().manual_seed(seed), len(counts[0][0])
    together = torch.cat([torch.cat(each, dim=1) for each in counts], dim=1).double().cpu()  # sums are exact below 2**53 pixels
    for start in range(0, num_resamples, RESAMPLES_PER_CHUNK):
        rows = min(RESAMPLES_PER_CHUNK, num_resamples - start)
        drawn = [torch.randint(num_images, (num_images,), generator=generator) for _ in range(rows)]
        times = torch.stack([torch.bincount(images, minlength=num_images) for images in drawn]).double()  # [rows, N]
        parts = (times @ together).chunk(2 * len(counts), dim=1)  # [rows, K] each
        yield [shared / either for shared, either in zip(parts[::2], parts[1::2], strict=True)]
