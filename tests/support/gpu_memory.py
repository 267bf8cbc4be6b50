"""Prints what a training step keeps in memory, counted without a GPU: `python -m tests.support.gpu_memory`.

The bytes that autograd keeps for the backward pass of one image (fake tensors, which have no values), and those of weights,
gradients and momentum. Workspace of the libraries and fragments are on top.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccnet import build_ccnet
from ccnet.losses.objective import Objective

CLASSES, IMAGES = 19, 2
BUDGETS = (8, 24, 80)
"""GiB of a GPU."""
SHARE = 0.8
"""Of the memory, for what is counted here."""


def kept(backbone: str, crop: int, bf16: bool) -> tuple[float, float]:
    """(bytes that do not depend on the batch, bytes kept for the backward pass of one image)."""
    with FakeTensorMode():
        net = build_ccnet(backbone=backbone, num_classes=CLASSES, recurrence=2).train()
        image = torch.zeros(IMAGES, 3, crop, crop, dtype=torch.uint8)
        label = torch.zeros(IMAGES, crop, crop, dtype=torch.uint8)
        parameters = {p.untyped_storage()._cdata for p in net.parameters()}
        seen: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                seen[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, bf16):
            output = net(image)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            Objective().terms(output, label)
        fixed = 3 * sum(p.numel() * 4 for p in net.parameters()) + sum(b.nbytes for b in net.buffers())
        return fixed, sum(storage.nbytes() for storage in seen.values()) / IMAGES


def images(backbone: str, crop: int, bf16: bool) -> list[int]:
    """Images of a GPU of each size of BUDGETS."""
    fixed, image = kept(backbone, crop, bf16)
    return [int((SHARE * budget * 2**30 - fixed) / image) for budget in BUDGETS]


def main() -> None:
    for backbone in ("resnet18", "resnet50", "resnet101"):
        for crop in (321, 513, 769):
            for bf16 in (False, True):
                fixed, image = kept(backbone, crop, bf16)
                kind, fits = "bf16" if bf16 else "float32", ", ".join(map(str, images(backbone, crop, bf16)))
                print(f"| {backbone} | {crop} | {kind} | {fixed / 2**30:.2f} + {image / 2**30:.2f} an image | {fits} |")


if __name__ == "__main__":
    main()
