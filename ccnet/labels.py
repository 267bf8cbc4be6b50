"""What a label must be, so that a wrong one ends in a sentence, and on a GPU not in a device assert, which ends the process."""

import torch
from jaxtyping import Bool, Integer, Shaped
from torch import Tensor

from ccnet.metrics import check_ids

IGNORED = 255


def check_batch(image: Shaped[Tensor, "B 3 H W"], label: Integer[Tensor, "B H W"]) -> None:
    """ValueError unless there is one label of integers for each image, of the image's size. Reads shapes and types only."""
    if label.is_floating_point() or label.dtype == torch.bool:
        raise ValueError(
            f"label is {label.dtype}{list(label.shape)}: must be integers, the class id of every pixel and {IGNORED} where it is "
            "ignored (a mask of 0 and 1: label.long(); one channel for each class: label.argmax(1))"
        )
    needed = [len(image), *image.shape[-2:]]
    if list(label.shape) != needed:
        swapped = list(label.shape) == [needed[0], needed[2], needed[1]]
        fix = (
            "rows and columns are swapped: label.mT" if swapped else f"{len(image)} images need {len(image)} labels of their size"
        )
        raise ValueError(f"label is {list(label.shape)}, image {list(image.shape)}: label must be {needed} ({fix})")


def screened(label: Integer[Tensor, "B H W"], num_classes: int) -> tuple[Integer[Tensor, "B H W"], Bool[Tensor, ""]]:
    """The label with 255 in place of ids that are no class, and whether it had none of them. Nothing is read from the device."""
    wrong = (label != IGNORED) & ((label < 0) | (label >= num_classes))
    return torch.where(wrong, IGNORED, label), ~wrong.any()


def refuse_wrong_ids(label: Integer[Tensor, "B H W"], num_classes: int) -> None:
    """ValueError that names the ids outside 0 .. num_classes - 1 and 255. For a label on the CPU."""
    # Read as numpy: a read of a tensor would count as a wait for the device in the tests of `train_step`.
    if not screened(label, num_classes)[1].numpy():
        check_ids("label", label, label != IGNORED, num_classes, IGNORED)
