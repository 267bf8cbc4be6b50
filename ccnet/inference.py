"""Class scores and class maps of images: whole or in windows, over scales and mirrored, within bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ccnet.labels import check_images
from ccnet.losses import resize_logits
from ccnet.model import Output
from ccnet.scheme import Scheme, checked, sized
from ccnet.shapes import Float, Shaped, UInt8

# Full-resolution scores held at once. All scores of an image of 150 classes at 1024 x 2048 pixels would be 1.3 GB of float32.
BLOCK_BYTES = 2**24


@runtime_checkable
class Scorer(Protocol):
    """A network that predicts: a CCNet, or any object that normalises an image and scores the result as CCNet's methods do."""

    def normalise(self, image: Tensor) -> Tensor: ...
    def scores(self, x: Tensor) -> Output: ...


class ScoresNotFinite(ValueError):
    """The network's scores hold NaN or infinity. Their arg max would be a class like any other: of NaN it is class 0."""


class _Bare:
    """A Scorer from a module without normalisation: its images must be normalised already."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def normalise(self, image: Tensor) -> Tensor:
        if not image.is_floating_point():
            raise ValueError(
                f"image is {image.dtype} and a {type(self.module).__name__} has no normalise: "
                "pass the CCNet itself, not a wrapper, or a normalised image"
            )
        return image

    def scores(self, x: Tensor) -> Output:
        output = self.module(x)
        return output if isinstance(output, Output) else Output(output, None)


class _View(NamedTuple):
    """Scores of one view at the net's resolution, and per axis the weights that turn them into output pixels.

    Resizing, placing windows and averaging their overlaps all work along each axis separately. So the view's scores at the
    output size are, for each class, rows @ scores @ cols.T. Windows lie side by side in `scores`.
    """

    scores: Float[Tensor, "K a b"]
    rows: Float[Tensor, "H a"]
    cols: Float[Tensor, "W b"]


def predict_logits(
    net: nn.Module,
    image: Shaped[Tensor, "B 3 h w"],
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    size: tuple[int, int] | None = None,
) -> Float[Tensor, "B K H W"]:
    """Raw class scores of every pixel at `size` (height, width; the image's own by default), float32 or wider.

    `net` is a CCNet and `image` uint8[B, 3, h, w] RGB of any size. Or `net` is any module from images to scores (a tensor or an
    `Output`) and `image` its input, already normalised, because padding adds zeros. The net is put into evaluation mode.
    For each scale s the normalised image is resized to (round(s * h), round(s * w)), at least 1, and scored
    - whole (window None): the logits are resized straight to `size`;
    - or in windows of `window` pixels (one number or height, width), one every `stride` pixels (`published_stride` by default):
      ceil((h - window) / stride) + 1 of them on an axis and at least one, the last one shifted back inside. A smaller image is
      padded with zeros (the mean colour) at the bottom and right. Logits are resized to the window, averaged where windows
      overlap, cropped, and resized from the scaled image's size to `size`.
    With `flip` the left-right mirrored image is scored too and its scores are mirrored back. The result is the mean over scales
    and mirrors, without soft-max. All resizing is bilinear by the net's `align_corners`, images included: True (also for a net
    that has no such attribute) is the published code (branch pytorch-1.5, evaluate.py: ndimage.zoom of order 1), False is
    mmsegmentation's way, except that it resizes the image in uint8 and averages probabilities over scales and mirrors.

    Images go through the net one at a time, so that no result depends on the rest of its batch. ValueError for a setting out of
    range, an empty batch, or a net in a wrapper. A score that is not finite also spoils the rows and columns around it.
    """
    return _predict(net, image, sized(size), checked(window, stride, scales, flip), lambda block: block)


def predict_classes(
    net: nn.Module,
    image: Shaped[Tensor, "B 3 h w"],
    size: tuple[int, int] | None = None,
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> UInt8[Tensor, "B H W"]:
    """Class of every pixel: the arg max of `predict_logits` for the same arguments, without a map of all scores.

    Memory holds BLOCK_BYTES of the scores at `size`, and the scores of all views of one image at the net's resolution: for a
    view at scale s about s^2 / 64 of the full map, half as much again where windows overlap. ValueError as in `predict_logits`,
    and for more than 256 classes; ScoresNotFinite if a score is NaN or infinite.
    """
    return _predict(net, image, sized(size), checked(window, stride, scales, flip), _classes_of)


def predict_confidence(
    net: nn.Module,
    image: Shaped[Tensor, "B 3 h w"],
    size: tuple[int, int] | None = None,
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> UInt8[Tensor, "B 2 H W"]:
    """[:, 0] is what `predict_classes` gives for the same arguments; [:, 1] is the network's confidence in it.

    The confidence is 255 p, rounded. p is the probability of the pixel's class by the soft-max over the classes of
    `predict_logits`: of the scores after they are averaged over windows, scales and mirrors. At K classes p is at least 1 / K.
    """
    return _predict(net, image, sized(size), checked(window, stride, scales, flip), _classes_and_confidence)


def _classes_of(scores: Float[Tensor, "K rows W"]) -> UInt8[Tensor, "rows W"]:
    if len(scores) > 256:
        raise ValueError(f"{len(scores)} classes: do not fit a uint8 (take the arg max of predict_logits)")
    best, classes = scores.max(0)  # of a NaN the maximum is NaN
    if not best.isfinite().all():
        raise ScoresNotFinite(
            "the network's scores are not finite: its weights, or the image, hold NaN or infinity (a training that diverged, or "
            "half precision outside its range: net.float())"
        )
    return classes.to(torch.uint8)


def _classes_and_confidence(scores: Float[Tensor, "K rows W"]) -> UInt8[Tensor, "2 rows W"]:
    confidence = (255 * scores.softmax(0).amax(0)).round().to(torch.uint8)
    return torch.stack([_classes_of(scores), confidence])


def _predict(
    net: nn.Module,
    image: Shaped[Tensor, "B 3 h w"],
    size: tuple[int, int] | None,
    scheme: Scheme,
    finish: Callable[[Tensor], Tensor],
) -> Tensor:
    """The scores of each image, computed in blocks of rows; each block goes through `finish`, and the results are joined."""
    if isinstance(net, DistributedDataParallel):
        raise ValueError("net is wrapped in DistributedDataParallel: pass net.module (the wrapper would wait for all workers)")
    check_images(image)
    net.eval()
    # Checked by name and not by the protocol, because a compiled net only forwards these attributes.
    scorer = cast(Scorer, net) if hasattr(net, "normalise") and hasattr(net, "scores") else _Bare(net)
    height, width = image.shape[-2:] if size is None else size
    scheme = scheme._replace(align_corners=bool(getattr(net, "align_corners", True)))
    with torch.no_grad():
        predictions = []
        for one in torch.split(image, 1):
            blocks = _blocks(_score_views(scorer, one, (height, width), scheme))
            predictions.append(torch.cat([finish(block) for block in blocks], dim=-2))
        return torch.stack(predictions)


def _score_views(net: Scorer, image: Shaped[Tensor, "1 3 h w"], size: tuple[int, int], scheme: Scheme) -> list[_View]:
    """All views of one image: each scale and, with `flip`, its mirror image."""
    x = net.normalise(image)
    scored = []
    for scale in scheme.scales:
        scaled = (max(1, round(scale * x.shape[-2])), max(1, round(scale * x.shape[-1])))
        # An image of the right size is not resized: the copy in float32 would be the largest array here.
        x_scaled = x
        if scaled != x.shape[-2:]:
            x_scaled = F.interpolate(x, size=scaled, mode="bilinear", align_corners=scheme.align_corners)
        scored.append(_score_view(net, x_scaled, size, scheme))
        if scheme.flip:
            mirrored = _score_view(net, x_scaled.flip(-1), size, scheme)
            scored.append(mirrored._replace(cols=mirrored.cols.flip(0)))
    return scored


def _score_view(net: Scorer, x: Float[Tensor, "1 3 h w"], size: tuple[int, int], scheme: Scheme) -> _View:
    """Score one normalised image, whole or in windows."""
    extent = (x.shape[-2], x.shape[-1])
    height, width = scheme.window or extent
    tops, lefts = _starts(extent[0], height, scheme.stride[0]), _starts(extent[1], width, scheme.stride[1])
    if height > extent[0] or width > extent[1]:
        x = F.pad(x, (0, max(0, width - extent[1]), 0, max(0, height - extent[0])))
    rows_of_tiles = ([net.scores(x[..., i : i + height, j : j + width]).logits[0] for j in lefts] for i in tops)
    scores = torch.cat([torch.cat(tiles, dim=-1) for tiles in rows_of_tiles], dim=-2)  # [K, tops * rows, lefts * cols]
    if scheme.window is None:
        # The scores of a whole image are resized once, straight to `size`, and not first to the scaled image's size.
        (height, width), extent = size, size
    dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = partial(_axis_weights, dtype=dtype, align_corners=scheme.align_corners)
    rows = weights(scores.shape[-2] // len(tops), starts=tops, window=height, length=extent[0], size=size[0])
    cols = weights(scores.shape[-1] // len(lefts), starts=lefts, window=width, length=extent[1], size=size[1])
    return _View(scores, rows.to(scores.device), cols.to(scores.device))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows on an axis begin. The last one is shifted back inside; a window longer than the axis begins at 0."""
    return [max(0, min(i * stride, length - window)) for i in range(max(0, ceil((length - window) / stride)) + 1)]


def _axis_weights(
    num_scores: int,
    *,
    starts: list[int],
    window: int,
    length: int,
    size: int,
    dtype: torch.dtype,
    align_corners: bool,
) -> Float[Tensor, "size n"]:
    """Weight of each of n = len(starts) * num_scores scores on each output pixel of an axis, found by resizing unit vectors.

    Computed in the dtype of the result, so that positions are rounded as `resize_logits` rounds them in training.
    """
    resize = partial(resize_logits, align_corners=align_corners)
    units = torch.eye(num_scores, dtype=dtype)
    tile = resize(units[None, None], (window, num_scores))[0, 0]  # [window, num_scores]
    placed = torch.zeros(length, len(starts), num_scores, dtype=dtype)
    for i, start in enumerate(starts):
        inside = min(window, length - start)
        placed[start : start + inside, i] = tile[:inside]
    # One window's weights on a pixel add up to 1, so all weights add up to the number of windows that cover the pixel.
    placed /= placed.sum((1, 2), keepdim=True)
    mean = placed.flatten(1)  # [length, n]
    return resize(mean[None, None], (size, mean.shape[1]))[0, 0]  # [size, n]


def _blocks(views: list[_View]) -> Iterator[Float[Tensor, "K rows W"]]:
    """Mean score over the views, one block of rows at a time from the top. A block reads only the scores that affect it."""
    cols = views[0].cols
    num_classes, height, width = len(views[0].scores), len(views[0].rows), len(cols)
    num_rows = max(1, BLOCK_BYTES // (num_classes * width * cols.element_size()))
    for block_rows in torch.split(torch.arange(height, device=cols.device), num_rows):
        block = cols.new_zeros(num_classes, len(block_rows), width)
        # Under autocast the products would be rounded to 8 bits.
        with torch.autocast(cols.device.type, enabled=False):
            for view in views:
                weights = view.rows[block_rows]  # [rows, a]
                used = weights.any(0).nonzero()[:, 0]
                wide = view.scores[:, used].to(cols.dtype) @ view.cols.T  # [K, used, W]
                block.baddbmm_(weights[:, used].expand(num_classes, -1, -1), wide, alpha=1 / len(views))
        yield block
