"""What a label must be, so that a wrong one ends in a sentence, and on a GPU not in a device assert, which ends the process."""

import torch
from torch import Tensor

from ccnet.metrics import as_ids, check_ids
from ccnet.shapes import Bool, Integer, Shaped

IGNORED = 255


def check_images(image: Shaped[Tensor, "B C H W"]) -> None:
    """ValueError unless it is a tensor of four dimensions, none of them 0."""
    if not isinstance(image, Tensor) or image.ndim != 4 or 0 in image.shape:
        came = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"image is {came}: must be a tensor [B, 3, H, W] of at least one image (of one image: image[None])")


def checked_label(image: Shaped[Tensor, "B 3 H W"], label: Integer[Tensor, "B H W"]) -> Integer[Tensor, "B H W"]:
    """The label in a dtype of `as_ids`; reads shapes and types only.

    ValueError unless image is [B, 3, H, W] and there is one label of integers for each image, of the image's size.
    """
    check_images(image)
    ids = as_ids("label", label)
    batch, channels, *size = image.shape
    if channels != 3 and image.shape[-1] == 3:
        raise ValueError(f"image is {list(image.shape)}: must be [B, 3, H, W], channels first: image.permute(0, 3, 1, 2)")
    if list(ids.shape) != [batch, *size]:
        fix = _fix(list(ids.shape), batch, size)
        raise ValueError(f"label is {list(ids.shape)}, image {list(image.shape)}: label must be {[batch, *size]} ({fix})")
    return ids


def _fix(shape: list[int], batch: int, size: list[int]) -> str:
    """What makes a label of this shape one of [batch, *size]."""
    if shape == [batch, *reversed(size)]:
        return "rows and columns are swapped: label.mT"
    if shape == [batch, 1, *size]:
        return "it has a channel: label[:, 0]"
    if shape == [batch, *size, 1]:
        return "it has a channel: label[..., 0]"
    if len(shape) == 4 and shape[:1] + shape[2:] == [batch, *size]:
        return "one channel for each class: label.argmax(1)"
    if shape == [batch, *size, 3]:
        return "colours are no class ids: look each one up in the data set's list of colours"
    if batch == 1 and shape == size:
        return "label[None]"
    return f"{batch} images need {batch} labels of their size"


def screened(label: Integer[Tensor, "B H W"], num_classes: int) -> tuple[Integer[Tensor, "B H W"], Bool[Tensor, ""]]:
    """The label with 255 in place of ids that are no class, and whether it had none of them. Nothing is read from the device."""
    wrong = (label != IGNORED) & ((label < 0) | (label >= num_classes))
    return torch.where(wrong, IGNORED, label), ~wrong.any()


def refuse_wrong_ids(label: Integer[Tensor, "B H W"], num_classes: int) -> None:
    """ValueError that names the ids outside 0 .. num_classes - 1 and 255. For a label on the CPU."""
    # Read as numpy: a read of a tensor would count as a wait for the device in the tests of `train_step`.
    if not screened(label, num_classes)[1].numpy():
        check_ids("label", label, label != IGNORED, num_classes, IGNORED)
