"""A tiny net with all that the step handles, and its training: in tests on one worker, in worker.py also on one of two."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ccnet import Output, SampleDropout2d, build_optimizer, synchronise_batch_norm, train_step
from ccnet.distributed import rank, world_size
from ccnet.ema import Average
from ccnet.layers import freeze_batch_norm
from ccnet.losses import PUBLISHED, Objective


def unchanged(logits: Tensor) -> Tensor:
    return logits


def infinite(logits: Tensor) -> Tensor:
    return logits * float("inf")


class TinyNet(nn.Module):
    """Batch norm, dropout and two or three heads after one convolution; `spoil` changes the logits."""

    def __init__(self, *, embedding: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.LeakyReLU(), SampleDropout2d(0.3))
        self.main, self.aux = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)
        self.embedding = nn.Conv2d(8, 4, 1) if embedding else None
        self.spoil = unchanged

    def forward(self, image: Tensor) -> Output:
        x = self.body(image.to(self.main.weight.dtype) / 64 - 2)
        return Output(self.spoil(self.main(x)), self.aux(x), self.embedding(x) if self.embedding else None)


def tiny_net(*, frozen: bool = False, embedding: bool = False) -> TinyNet:
    torch.manual_seed(3)
    net = TinyNet(embedding=embedding).double()
    for name in ("running_mean", "running_var"):
        net.body[1].get_buffer(name).uniform_(0.5, 1.5)
    return freeze_batch_norm(net) if frozen else net


def tiny_batch(total: int) -> tuple[Tensor, Tensor]:
    """Images and labels. The first image has no valid pixel; each further image has fewer than the one before."""
    generator = torch.Generator().manual_seed(total)
    image = torch.randint(0, 256, (total, 3, 32, 40), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, 5, (total, 32, 40), dtype=torch.uint8, generator=generator)
    for row in range(total):
        label[row, : 32 if row == 0 else 4 * row] = 255
    return image, label


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer, average: Average[nn.Module]) -> dict[str, Tensor]:
    """Copies of everything that a step changes."""
    momentum = {f"momentum/{n}": state["momentum_buffer"] for n, state in optimizer.state_dict()["state"].items()}
    state = momentum | {f"net/{name}": value for name, value in net.state_dict().items()}
    state |= {f"average/{name}": value for name, value in average.net.state_dict().items()}
    return {name: value.clone() for name, value in state.items()}


def trained(
    total: int,
    *,
    frozen: bool = False,
    steps: int = 3,
    bad_row: int | None = None,
    objective: Objective = PUBLISHED,
    **options: Any,
) -> dict[str, Tensor]:
    """State and results after each of `steps` steps on this worker's rows; row `bad_row` has infinite logits at step 1."""
    net = tiny_net(frozen=frozen, embedding=objective.consistency_weight > 0)
    wrapped = net
    if dist.is_initialized():
        wrapped = DistributedDataParallel(
            synchronise_batch_norm(net, "cpu"), forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
    average = Average(net, 0.8)
    image, label = tiny_batch(total)
    first, end = (total * r // world_size() for r in (rank(), rank() + 1))
    results = {}
    for step in range(steps):
        bad = step == 1 and bad_row is not None and first <= bad_row < end
        net.spoil = infinite if bad else unchanged
        result = train_step(
            wrapped, optimizer, image[first:end], label[first:end],
            learning_rate=0.1, seed=7, step=step, rows=(first, total), objective=objective, average=average, **options,
        )  # fmt: skip
        found = {f"mean/{name}": value for name, value in result.losses.items()}
        found |= {"norm": result.gradient_norm, "applied": torch.tensor(float(result.applied), dtype=torch.float64)}
        results |= {f"{step}/{name}": value for name, value in (found | state_of(net, optimizer, average)).items()}
    return results
