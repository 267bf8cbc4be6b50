"""A training step never makes the host wait for the device, whatever its options.

On a GPU torch itself counts the waits. On every machine the calls of a step are searched for those that would wait: reading a
value, and results whose size depends on values.
"""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ccnet import build_ccnet, build_optimizer, train_step
from ccnet.ema import Average
from ccnet.losses import Objective, Ohem
from tests.ccnet.device import DEVICE

READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal"}
OPTIONS = {
    "plain": {},
    "ohem": {"objective": Objective(ohem=Ohem(min_kept=200))},
    "every term": {"objective": Objective(class_weights=(1.0, 2.0, 3.0), consistency_weight=1.0, dice_weight=0.5)},
    "lovasz": {"objective": Objective(lovasz_weight=1.0)},
    "passes": {"micro_batch": 1},
    "clipped": {"clip_norm": 1.0},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
}


class Reads(TorchDispatchMode):
    """Records the calls for which the host of a GPU would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in READS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class Training:
    """Steps of a small network on one batch."""

    def __init__(self, options):
        torch.manual_seed(0)
        net = build_ccnet(backbone="resnet18", num_classes=3, recurrence=2, embedding_channels=4)
        self.net = net.to(DEVICE).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.net, learning_rate=0.1, momentum=0.9, weight_decay=1e-4)
        self.average = Average(self.net, 0.9)
        self.image = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8, device=DEVICE)
        self.label = torch.randint(0, 3, (2, 33, 33), dtype=torch.uint8, device=DEVICE)
        self.options = options | ({"scaler": torch.amp.GradScaler(DEVICE)} if options.get("precision") == "fp16" else {})

    def step(self, number):
        return train_step(
            self.net, self.optimizer, self.image, self.label,
            learning_rate=0.1, seed=0, step=number, average=self.average, **self.options,
        )  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_step_reads_nothing_back(options):
    training = Training(options)
    training.step(0)
    with Reads() as reads:
        result = training.step(1)
    assert reads.found == []
    with reads:
        assert result.applied
    assert reads.found, "reading the result must be found"


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU, where torch counts what the host waits for")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_step_waits_for_nothing_on_a_gpu(options):
    training = Training(options)
    for number in range(2):  # compiles the kernels and allocates the memory
        training.step(number)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = training.step(2)
            in_step = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
            assert result.applied
        assert len(caught) > len(in_step), "reading the result must be counted"
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert in_step == []
