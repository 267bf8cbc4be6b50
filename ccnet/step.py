"""One training step and one evaluation step, on one device, alone or as one worker of many."""

import hashlib

import torch
import torch.distributed as dist
from jaxtyping import Float64, Integer, Shaped, UInt8
from torch import Tensor, nn
from torch.optim import Optimizer

from ccnet.inference import predict_classes
from ccnet.layers import world_size
from ccnet.losses import PUBLISHED, Objective, mean
from ccnet.metrics import ConfusionMatrix


def seed_step(seed: int, step: int) -> None:
    """Seed torch's default generators by (seed, step), alike on every worker; nothing else of the history matters."""
    # Hashed, because the CPU generator keeps 32 bits of its seed and seed + step would make runs share their masks.
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=4).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def train_step(
    net: nn.Module,
    optimizer: Optimizer,
    image: Shaped[Tensor, "B 3 H W"],
    label: Integer[Tensor, "B H W"],
    *,
    learning_rate: float,
    objective: Objective = PUBLISHED,
    seed: int,
    step: int,
) -> dict[str, Float64[Tensor, ""]]:
    """One optimizer step on this worker's rows of the global batch; returns what was minimised and what it consists of.

    `net` is the bare module on one worker and wrapped in DistributedDataParallel on several; worker r holds rows
    [r * B, (r + 1) * B). The result, detached and the same on every worker, has the mean of each term of the objective over the
    global batch by name, sum over all workers / count over all workers, and their weighted sum as "loss". A term that counts
    nothing, as in a global batch without a valid pixel, is 0 and has zero gradients (momentum and weight decay still act).
    """
    seed_step(seed, step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    net.train()
    optimizer.zero_grad(set_to_none=True)
    terms = objective.terms(net(image), label)
    totals = torch.stack([torch.stack([total.detach().double(), count]) for _, total, count in terms.values()])  # [T, 2]
    if dist.is_initialized():
        dist.all_reduce(totals)
    sums, counts = totals.unbind(1)
    parts = [weight * mean(total, count) for (weight, total, _), count in zip(terms.values(), counts, strict=True)]
    # Times the world size, because DistributedDataParallel averages the workers' gradients and the law asks for their sum.
    torch.autograd.backward(torch.stack(parts).sum() * world_size())
    optimizer.step()
    means = dict(zip(terms, mean(sums, counts), strict=True))
    return {"loss": torch.stack([weight * means[name] for name, (weight, _, _) in terms.items()]).sum()} | means


def evaluate_step(
    net: nn.Module, image: Shaped[Tensor, "B 3 h w"], label: Integer[Tensor, "B H W"], confusion: ConfusionMatrix
) -> UInt8[Tensor, "B H W"]:
    """Predict at the label's size, count into `confusion`, return the prediction. No collective: unequal shares are fine."""
    prediction = predict_classes(net, image, (label.shape[-2], label.shape[-1]))
    confusion.update(prediction, label)
    return prediction
