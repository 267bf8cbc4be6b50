"""One training step and one evaluation step, on one device, alone or as one worker of many."""

import hashlib
import itertools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ccnet.distributed import rank, world_size
from ccnet.ema import Average
from ccnet.inference import predict_classes
from ccnet.labels import checked_label, refuse_wrong_ids, screened
from ccnet.layers import global_rows
from ccnet.losses import PUBLISHED, Objective, mean
from ccnet.metrics import ConfusionMatrix
from ccnet.model import Output
from ccnet.shapes import Bool, Float64, Integer, Shaped, UInt8

Precision = Literal["float32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """The results of a training step; the same on every worker."""

    losses: dict[str, Float64[Tensor, ""]]
    """By name, the mean of each term of the objective over the global batch, and their weighted sum as "loss"; detached."""
    gradient_norm: Float64[Tensor, ""]
    """L2 norm of the whole gradient before clipping."""
    applied: Bool[Tensor, ""]
    """False if the step was skipped because loss or gradient was not finite. Reading it makes the host wait for the device."""


def seed_step(seed: int, step: int) -> None:
    """Seed torch's default generators by (seed, step) alone, equally on every worker."""
    # Hashed, because the CPU generator keeps 32 bits of its seed, and with seed + step different runs would share their masks.
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
    rows: tuple[int, int] | None = None,
    precision: Precision = "float32",
    scaler: GradScaler | None = None,
    micro_batch: int | None = None,
    clip_norm: float | None = None,
    average: Average[nn.Module] | None = None,
) -> StepResult:
    """One optimizer step on this worker's rows of the global batch.

    `net` is the bare module on one worker, wrapped in DistributedDataParallel on several. `rows` is (first, total): this worker
    holds rows [first, first + B) of a global batch of `total`, and shares differ by one row at most. By default all workers hold
    equally many rows, in the order of their ranks. The mean of a term is its sum over all workers / its count over all workers,
    whatever their shares. A term that counts nothing, as in a global batch without a valid pixel, is 0 and has zero gradients
    (momentum and weight decay still act).

    If the loss or the norm of the gradient is not finite, parameters, optimizer state, buffers and `average` stay as they were on
    every worker. The host does not wait for the device, unless the optimizer cannot skip a step by itself. torch's optimizers can
    with `fused=True`, which `build_optimizer` sets.

    `precision` is that of the network's convolutions and products (autocast); its output becomes float32 before the losses. fp16
    needs a `scaler`, which lowers its scale after a skipped step. A gradient with a norm above `clip_norm` is scaled down to it.
    `average` is updated with the weights after each step, with n = `step`.

    With `micro_batch` the rows go through the network in several passes of at most that many images, equally many passes on
    every worker (hence passes of 2 for a micro_batch of 1 when shares are unequal and the smallest is 1). A pass is weighted by
    its share of the global batch's valid pixels, or of their class weights, so that cross-entropy has the loss and gradient of a
    single pass. Batch norm in training and the OHEM, consistency, dice and Lovasz terms see one pass of all workers at a time,
    OHEM with an equal part of `min_kept`. Dropout is that of a single pass.

    A label with an id that is no class skips the step on every worker, like a loss that is not finite; on a CPU this is then a
    ValueError. On a GPU the host would have to wait for the ids. ValueError also for labels that do not fit the images, `rows`
    outside the global batch or fewer than the passes, micro_batch < 1, fp16 without scaler, a precision, learning rate or
    clip_norm that does not exist.
    """
    label = checked_label(image, label)
    _check_settings(precision, scaler, learning_rate, clip_norm, micro_batch)
    first, total = rows or (rank() * len(image), world_size() * len(image))
    runs = _runs(len(image), first, total, micro_batch)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    net.train()
    optimizer.zero_grad(set_to_none=True)
    before = [_joined(buffers) for buffers in _buffers_by_kind(net)]
    shares = _shares([label[run] for run in runs], objective)
    of_pass = objective.of_pass(len(runs))
    passes = []
    for run, share in zip(runs, shares, strict=True):
        seed_step(seed, step)
        with _gradients_stay_local(net, run is not runs[-1]), global_rows(first + run.start, total):
            means, num_classes = _add_gradients(net, image[run], label[run], of_pass, share, DTYPES[precision], scaler)
            passes.append(means)
    losses = {name: torch.stack([each[name] for each in passes]).sum() for name in passes[0]}
    gradient_norm, applied = _apply(optimizer, losses["loss"], clip_norm, scaler)
    for buffers, kept in zip(_buffers_by_kind(net), before, strict=True):
        parts = torch.split(torch.where(applied, _joined(buffers), kept), [buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])
    if average is not None:
        average.update(net, step, applied)
    if label.device.type == "cpu":
        refuse_wrong_ids(label, num_classes)
    return StepResult(losses, gradient_norm, applied)


def _check_settings(
    precision: str, scaler: GradScaler | None, learning_rate: float, clip_norm: float | None, micro_batch: int | None
) -> None:
    if precision not in [*DTYPES]:  # a list, because what cannot be hashed is no precision either
        raise ValueError(f"precision = {precision!r}: must be one of {', '.join(map(repr, DTYPES))}")
    if precision == "fp16" and scaler is None:
        raise ValueError(
            "precision = 'fp16': needs scaler=torch.amp.GradScaler(device), or small gradients round to 0 (try bf16)"
        )
    if isinstance(learning_rate, str) or learning_rate is None or not 0.0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate = {learning_rate!r}: must be a finite number >= 0")
    if clip_norm is not None and (isinstance(clip_norm, str) or not 0.0 < clip_norm < math.inf):
        raise ValueError(f"clip_norm = {clip_norm!r}: must be a finite number > 0, or None for a gradient that is not clipped")
    if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1):
        raise ValueError(f"micro_batch = {micro_batch!r}: must be at least 1 image, or None for one pass")


def _runs(num_images: int, first: int, total: int, micro_batch: int | None) -> list[slice]:
    """The rows of each pass: nearly equal parts of this worker's rows, equally many parts on every worker."""
    smallest, largest = total // world_size(), -(-total // world_size())
    # At most as many passes as the smallest share has rows: a worker without a row would miss the collectives of a pass.
    num_passes = 1 if micro_batch is None else min(-(-largest // micro_batch), smallest)
    if not (0 <= first <= total - num_images and 1 <= num_passes <= num_images):
        raise ValueError(
            f"rows = {(first, total)} with {num_images} images: must be (first, total) with first + {num_images} <= total, "
            "and the workers' shares of total must differ by one at most"
        )
    cuts = [num_images * n // num_passes for n in range(num_passes + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(cuts)]


def _buffers_by_kind(net: nn.Module) -> list[list[Tensor]]:
    """The buffers in lists of one dtype and device, which take a few kernels on a GPU instead of several per buffer."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for buffer in net.buffers():
        kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
    return list(kinds.values())


def _joined(buffers: list[Tensor]) -> Shaped[Tensor, " n"]:
    return torch.cat([buffer.flatten() for buffer in buffers])


def _shares(labels: list[Tensor], objective: Objective) -> Float64[Tensor, " M"]:
    """The share of each pass, over all workers, in the global batch; 0 for all passes if there is no valid pixel."""
    if len(labels) == 1:
        return torch.ones(1, dtype=torch.float64, device=labels[0].device)
    extents = torch.stack([objective.extent(label) for label in labels])  # [M]
    if dist.is_initialized():
        dist.all_reduce(extents)
    return mean(extents, extents.sum().expand_as(extents))


def _gradients_stay_local(net: nn.Module, local: bool) -> AbstractContextManager[None]:
    """If `local`, DistributedDataParallel adds up gradients inside and does not exchange them."""
    return net.no_sync() if local and isinstance(net, DistributedDataParallel) else nullcontext()


def _add_gradients(
    net: nn.Module,
    image: Tensor,
    label: Tensor,
    objective: Objective,
    share: Float64[Tensor, ""],
    dtype: torch.dtype | None,
    scaler: GradScaler | None,
) -> tuple[dict[str, Float64[Tensor, ""]], int]:
    """One forward and backward pass. Returns its part of the means by name, the weighted sum first, and the number of classes."""
    with torch.autocast(image.device.type, dtype=dtype, enabled=dtype is not None):
        output = net(image)
    num_classes = output.logits.shape[1]
    target, legal = screened(label, num_classes)
    wide = Output._make(x if x is None else x.to(torch.promote_types(x.dtype, torch.float32)) for x in output)
    terms = objective.terms(wide, target, align_corners=_align_corners(net))
    totals = torch.stack([torch.stack([total.detach().double(), count]) for _, total, count in terms.values()])  # [T, 2]
    totals = torch.where(legal, totals, math.nan)  # on every worker after the sum, so that all skip the step
    if dist.is_initialized():
        dist.all_reduce(totals)
    sums, counts = totals.unbind(1)
    parts = [weight * mean(total, count) for (weight, total, _), count in zip(terms.values(), counts, strict=True)]
    # Times the world size, because DistributedDataParallel averages the workers' gradients and the mean needs their sum.
    loss = torch.stack(parts).sum() * world_size() * share
    torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
    means = dict(zip(terms, share * mean(sums, counts), strict=True))
    return {"loss": torch.stack([weight * means[name] for name, (weight, _, _) in terms.items()]).sum()} | means, num_classes


def _align_corners(net: nn.Module) -> bool:
    """How the net's scores are resized: a net that does not say aligns the corners, as published."""
    # A compiled net forwards the attribute, DistributedDataParallel does not.
    inner = net.module if isinstance(net, DistributedDataParallel) else net
    return bool(getattr(inner, "align_corners", True))


def _apply(
    optimizer: Optimizer, loss: Float64[Tensor, ""], clip_norm: float | None, scaler: GradScaler | None
) -> tuple[Float64[Tensor, ""], Bool[Tensor, ""]]:
    """Update the weights unless loss or gradient is not finite. Returns the gradient's norm and whether they were updated."""
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # All workers have the same sums and gradients, so they make the same decision.
    applied = loss.isfinite() & norm.isfinite()
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    if getattr(optimizer, "_step_supports_amp_scaling", False):  # the flag that torch.amp.GradScaler reads
        optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]  # 1 skips the step, on the device
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif applied:
        optimizer.step()
    if scaler is not None:
        scaler.update()
    return norm.double(), applied


def evaluate_step(
    net: nn.Module, image: Shaped[Tensor, "B 3 h w"], label: Integer[Tensor, "B H W"], confusion: ConfusionMatrix
) -> UInt8[Tensor, "B H W"]:
    """Predict at the label's size, count into `confusion`, return the prediction. No collective, so shares may be unequal."""
    prediction = predict_classes(net, image, (label.shape[-2], label.shape[-1]))
    confusion.update(prediction, label)
    return prediction
