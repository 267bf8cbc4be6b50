"""One training step and one evaluation step, on one device, alone or as one worker of many."""

import hashlib

import torch
import torch.distributed as dist
from jaxtyping import Float64, Integer, Shaped, UInt8
from torch import Tensor, nn
from torch.optim import Optimizer

from ccnet.inference import predict_classes
from ccnet.layers import world_size
from ccnet.losses import segmentation_loss
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
    aux_weight: float = 0.4,
    seed: int,
    step: int,
) -> Float64[Tensor, ""]:
    """One optimizer step on this worker's rows of the global batch; returns the mean loss per valid pixel of the global batch.

    `net` is the bare module on one worker and wrapped in DistributedDataParallel on several; worker r holds rows
    [r * B, (r + 1) * B). The result, detached, is the same on every worker. A global batch without a valid pixel has loss 0 and
    zero gradients (momentum and weight decay still act).
    """
    seed_step(seed, step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    net.train()
    optimizer.zero_grad(set_to_none=True)
    local_sum, local_count = segmentation_loss(net(image), label, aux_weight=aux_weight)
    total = torch.stack([local_sum.detach().double(), local_count])  # [2]
    if dist.is_initialized():
        dist.all_reduce(total)
    global_sum, global_count = total[0], total[1].clamp(min=1)
    # Times the world size, because DistributedDataParallel averages the workers' gradients and the law asks for their sum.
    torch.autograd.backward(local_sum * (world_size() / global_count))
    optimizer.step()
    return global_sum / global_count


def evaluate_step(
    net: nn.Module, image: Shaped[Tensor, "B 3 h w"], label: Integer[Tensor, "B H W"], confusion: ConfusionMatrix
) -> UInt8[Tensor, "B H W"]:
    """Predict at the label's size, count into `confusion`, return the prediction. No collective: unequal shares are fine."""
    prediction = predict_classes(net, image, (label.shape[-2], label.shape[-1]))
    confusion.update(prediction, label)
    return prediction
