"""Mixed precision: autocast to bfloat16 and float16, forward and backward, against float32 on the CPU."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ccnet import RCCAHead, build_ccnet
from ccnet.losses import cross_entropy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
HALVES = [torch.bfloat16, torch.float16]
LOSS_SCALE = {None: 1.0, torch.bfloat16: 1.0, torch.float16: 1024.0}
"""The loss is scaled as by a gradient scaler: otherwise float16 rounds small gradients to 0."""


class Result(NamedTuple):
    """Scores of the main head, mean loss per pixel, gradients of all parameters as one vector."""

    logits: Tensor
    loss: Tensor
    gradient: Tensor


def head_and_input() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    head = RCCAHead(64, 32, 3, recurrence=2)
    nn.init.constant_(head.attention.gamma, 0.7)
    return head, torch.randn(2, 64, 6, 7)


def net_and_input() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = build_ccnet(backbone="resnet18", num_classes=3, recurrence=2, auxiliary=False)
    nn.init.constant_(net.head.attention.gamma, 0.7)
    return net, torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)


def run(make, dtype: torch.dtype | None, device: str, *, train: bool) -> Result:
    """Forward and backward under autocast to `dtype`, or in float32 for None; dropout has the same mask every time."""
    module, x = make()
    module.train(train).to(device)
    label = torch.randint(0, 3, (2, 33, 33), generator=torch.Generator().manual_seed(0)).to(device)
    torch.manual_seed(1)
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        output = module(x.to(device))
        logits = output if isinstance(output, Tensor) else output.logits
        total, count = cross_entropy(logits, label)
    loss = total / count
    (loss * LOSS_SCALE[dtype]).backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()]) / LOSS_SCALE[dtype]
    return Result(*(value.detach().cpu().double() for value in (logits, loss, gradient)))


# Relative distance |actual - expected| / |expected| of (logits, loss, gradient): about twice the largest of six seeds, on a CPU.
# A rounded activation near 0 flips its ReLU, and batch norm of few values passes that on: in training, rounding nothing but the
# weights to bfloat16 and computing in float32 already moves the whole net's gradient by 0.3. Hence the wide bounds there.
@pytest.mark.parametrize(
    ("make", "train", "dtype", "bounds"),
    [
        (head_and_input, True, torch.bfloat16, (1.2e-2, 3e-4, 0.16)),
        (head_and_input, True, torch.float16, (1.4e-3, 4e-5, 0.022)),
        (net_and_input, True, torch.bfloat16, (0.14, 2e-3, 0.75)),
        (net_and_input, True, torch.float16, (0.018, 2.2e-4, 0.4)),
        (net_and_input, False, torch.bfloat16, (0.018, 1.1e-4, 0.09)),
        (net_and_input, False, torch.float16, (2.2e-3, 2e-5, 0.04)),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_stays_close_to_float32_forward_and_backward(make, train, dtype, bounds, device):
    expected = run(make, None, "cpu", train=train)
    actual = run(make, dtype, device, train=train)
    for a, e, bound in zip(actual, expected, bounds, strict=True):
        assert (a - e).norm() <= bound * e.norm()  # NaN fails


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("factor", [100, 100_000], ids=["beyond exp", "beyond float16"])
def test_large_affinities_leave_no_nan(factor, dtype, device):
    """Affinities of up to 135, where exp(89) is infinite in float32, or of up to 135,000, where float16 ends at 65,504.

    Features of another backbone can be as large, and nothing scales the affinities.
    """
    head, x = head_and_input()
    for layer in (head.attention.query, head.attention.key):
        layer.weight.data *= factor**0.5
    head.to(device)
    with torch.autocast(device, dtype=dtype):
        logits = head(x.to(device))
    logits.float().square().mean().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
