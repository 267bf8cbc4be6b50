"""One worker of `world`, run as a script for the tests that compare two workers with one: python worker.py RANK WORLD FOLDER.

World 1 is the reference: no process group, plain torch BatchNorm2d, the whole batch. The script writes FOLDER/WORLD_RANK.pt.
"""

import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from ccnet import SampleDropout2d, build_ccnet, build_optimizer, synchronise_batch_norm, train_step
from ccnet.losses import PUBLISHED, Objective, Ohem, category_consistent, ohem_cross_entropy
from ccnet.losses.global_batch import kth_smallest
from tests.ccnet.tiny import tiny_batch, tiny_net, trained

EVERY_TERM = Objective(
    # So low that min_kept decides: this is the part that needs the other workers.
    ohem=Ohem(thresh=0.05, min_kept=640),
    class_weights=(0.5, 1.0, 2.0, 0.1, 1.5),
    consistency_weight=1.0,
    dice_weight=0.5,
    lovasz_weight=0.25,
)


def batch_norm(rows: slice) -> dict[str, Tensor]:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(3).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    net = nn.Sequential(norm)
    if dist.is_initialized():
        synchronise_batch_norm(net, "cpu")
    results = {}
    for turn in range(2):
        # The rows differ in mean by far more than their deviation, so that E[x^2] - E[x]^2 or an average of variances would fail.
        x = torch.randn(4, 3, 5, 6, dtype=torch.float64) + 100 * torch.arange(4).view(4, 1, 1, 1)
        multiplier = torch.randn(4, 3, 5, 6, dtype=torch.float64)
        x = x[rows].requires_grad_()
        net.zero_grad()
        y = net(x)
        (y * multiplier[rows]).sum().backward()
        results |= {f"y{turn}": y.detach(), f"x_grad{turn}": x.grad}
        results |= {f"weight_grad{turn}": norm.weight.grad.clone(), f"bias_grad{turn}": norm.bias.grad.clone()}
    return results | {f"state/{name}": value for name, value in net.state_dict().items()}


def dropout(rows: slice) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {"y": SampleDropout2d(0.4)(torch.ones(4, 50, 2, 2)[rows])}


def losses(rows: slice) -> dict[str, Tensor]:
    """Sum, count and gradient of the losses that use a collective; worker 0 of 2 holds 9 valid pixels, worker 1 holds 160."""
    torch.manual_seed(4)
    scores = 2 * torch.randn(4, 5, 8, 10, dtype=torch.float64)
    label = torch.randint(0, 5, (4, 8, 10))
    label[0] = label[1] = 255
    label[1, 7, :9] = 2
    results = {}
    for name, loss in {
        "ohem": partial(ohem_cross_entropy, thresh=0.01, min_kept=60, factor=1),
        "consistency": category_consistent,
        "consistency per image": partial(category_consistent, per_image=True),
    }.items():
        x = scores[rows].clone().requires_grad_()
        total, count = loss(x, label[rows])
        total.backward()
        results |= {f"{name}/total": total.detach(), f"{name}/count": count, f"{name}/grad": x.grad}
    return results


def smallest(rows: slice) -> dict[str, Tensor]:
    """The 5th smallest of 6 values, of which worker 0 of 2 holds one and worker 1 holds five."""
    values = torch.tensor([9.0, 0.5, 7.0, 7.0, 1.0, 1.0, 3.0, 4.0, 2.0])
    valid = torch.tensor([False, True, False, False, True, True, True, True, True])
    mine = slice(0, 9) if rows == slice(0, 4) else slice(0, 4) if rows == slice(0, 2) else slice(4, 9)
    value, count = kth_smallest(values[mine], valid[mine], 5)
    return {"value": value, "count": count}


def training(rows: slice, objective: Objective, embedding_channels: int | None) -> dict[str, Tensor]:
    torch.manual_seed(3)
    net = build_ccnet(backbone="resnet18", num_classes=5, recurrence=2, embedding_channels=embedding_channels).double()
    nn.init.constant_(net.head.attention.gamma, 0.5)
    image = torch.randint(0, 256, (4, 3, 33, 41), dtype=torch.uint8)
    label = torch.randint(0, 5, (4, 33, 41), dtype=torch.uint8)
    label[0] = label[1] = 255  # worker 0 of 2 has no valid pixel except those of the next line
    label[1, :3] = 2
    wrapped: nn.Module = net
    if dist.is_initialized():
        wrapped = DistributedDataParallel(synchronise_batch_norm(net, "cpu"))
    optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
    state = {}
    for step in range(2):
        result = train_step(
            wrapped, optimizer, image[rows], label[rows], learning_rate=0.01, objective=objective, seed=7, step=step
        )
        state |= {f"mean/{name}{step}": value for name, value in result.losses.items()}
    return state | {f"state/{name}": value for name, value in net.state_dict().items()}


def shared(world: int) -> dict[str, dict[str, Tensor]]:
    """Training of the tiny net with its rows in several shares and passes; one worker alone uses one pass."""

    def passes(micro_batch: int) -> dict[str, Any]:
        return {"frozen": True, "micro_batch": None if world == 1 else micro_batch}

    weighted = Objective(class_weights=(0.5, 1.0, 2.0, 0.1, 1.5))
    return {
        "unequal": trained(3),
        "unequal on every term": trained(3, objective=EVERY_TERM),
        "unequal, clipped": trained(3, clip_norm=0.25),
        "passes": trained(4, **passes(1)),
        "unequal passes": trained(5, objective=weighted, **passes(2)),
        "fewer passes than images": trained(3, **passes(1)),
        "bad row": trained(4, bad_row=3),
    }


def exchanges() -> dict[str, Tensor]:
    """How often a step of two passes exchanges the gradient, which fits one bucket."""
    net, (image, label) = tiny_net(frozen=True), tiny_batch(2)
    wrapped, seen = DistributedDataParallel(net), []

    def seen_and_reduced(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        seen.append(bucket)
        return allreduce_hook(None, bucket)

    wrapped.register_comm_hook(None, seen_and_reduced)
    optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
    train_step(wrapped, optimizer, image, label, learning_rate=0.1, seed=7, step=0, micro_batch=1)
    return {"num": torch.tensor(len(seen))}


def main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    rows = slice(4 // world * rank, 4 // world * (rank + 1))
    results = {
        "batch_norm": batch_norm(rows),
        "dropout": dropout(rows),
        "losses": losses(rows),
        "smallest": smallest(rows),
        "training": training(rows, PUBLISHED, None),
        "training on every term": training(rows, EVERY_TERM, 16),
        **shared(world),
    }
    if world > 1:
        results["exchanges"] = exchanges()
    torch.save(results, f"{folder}/{world}_{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
