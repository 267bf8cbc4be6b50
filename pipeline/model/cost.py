"""What one training step costs, counted without a device: operations, and bytes of memory at their highest."""

import weakref
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ccnet import build_ccnet, freeze_batch_norm
from ccnet.step import DTYPES
from pipeline.config.config import Config
from pipeline.model.learner import network_arguments, objective

WORKSPACE = 2
"""Times the largest weight, for the workspace of the libraries. Measured on CPUs: so the count of 12 points is 0.95 to 1.05
of what real steps need (`python -m tests.support.step_memory`). Not measured on GPUs."""


class StepCost(NamedTuple):
    """The cost of one optimizer step of one worker."""

    flops: int
    """Floating point operations, forward and backward; a multiplication and an addition are two."""
    peak_bytes: int
    """Most bytes at one time: weights, gradients, momentum, average, batch and what the pass holds. The process itself is on top.
    """


def step_cost(config: Config, num_classes: int, images: int) -> StepCost:
    """The cost of a step on `images` images of `data.crop_size` in one pass.

    Counted on fake tensors, which have sizes and no values: about a second, whatever the size of the network.
    """
    train, (height, width) = config.train, config.data.crop_size
    dtype = DTYPES[train.precision]
    live, counter = _LiveBytes(), FlopCounterMode(display=False)
    with FakeTensorMode(), live, counter:
        net = build_ccnet(**network_arguments(config, num_classes) | {"init": "published"}).train()
        if train.freeze_norm:
            freeze_batch_norm(net.backbone)
        image = torch.zeros(images, 3, height, width, dtype=torch.uint8)
        label = torch.zeros(images, height, width, dtype=torch.int64)
        trained = sum(parameter.nbytes for parameter in net.parameters() if parameter.requires_grad)
        state = sum(tensor.nbytes for tensor in net.state_dict().values())
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            output = net(image)
        wide = type(output)._make(part if part is None else part.float() for part in output)
        terms = objective(config.loss, train.global_batch).terms(wide, label, align_corners=net.align_corners)
        torch.autograd.backward(torch.stack([weight * total.double() for weight, total, _ in terms.values()]).sum())
    workspace = WORKSPACE * max(parameter.nbytes for parameter in net.parameters())
    kept = workspace + (trained if train.momentum else 0) + (state if train.ema_decay else 0)
    return StepCost(int(counter.get_total_flops()), live.peak + kept)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, num_bytes = storage._cdata, storage.nbytes()
        if address not in self.known:
            self.known.add(address)
            self.now += num_bytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, address, num_bytes)

    def _freed(self, address: int, num_bytes: int) -> None:
        self.known.remove(address)
        self.now -= num_bytes
