"""The learner of one worker: network, objective, optimizer, weight average and gradient scaler, as configured."""

from typing import Any, cast

import torch

from ccnet import CCNet, build_ccnet, distributed
from ccnet.ema import Average
from ccnet.layers import freeze_batch_norm, synchronise_batch_norm
from ccnet.losses import Objective, Ohem
from ccnet.optim import build_optimizer
from ccnet.step import StepResult, train_step
from pipeline.checkpoints.checkpoint import Checkpoint, restore
from pipeline.config.config import Config
from pipeline.config.model import Loss
from pipeline.model.pretrained import Pretrained, load_pretrained

PUBLISHED_KEPT = 50_000
"""Pixels of an image that OHEM keeps at least: the published 100,000 (README of CCNet) are of two images, the batch of a GPU."""


class Learner:
    """Network, its DDP wrapper, optimizer, average and gradient scaler on this worker's device."""

    def __init__(self, config: Config, num_classes: int, device: torch.device, initial: Pretrained | None = None) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device, train = config, device, config.train
        self.model = network_arguments(config, num_classes)
        self.initial_sha256 = initial.sha256 if initial else None
        self.objective = objective(config.loss, train.global_batch)
        built = build_ccnet(**self.model)
        if initial:
            load_pretrained(built, initial, num_classes)
        if train.freeze_norm:
            freeze_batch_norm(built.backbone)
        net = synchronise_batch_norm(built, device)
        self.net: CCNet = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.net, train.learning_rate, train.momentum, train.weight_decay)
        self.average = Average(self.net, train.ema_decay) if train.ema_decay else None
        self.scaler = torch.amp.GradScaler(device.type) if train.precision == "fp16" else None
        self.micro_batch = train.micro_batch
        self.parallel: torch.nn.Module = self.net
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def scored(self) -> CCNet:
        """The network that is validated and used for predictions: the average of the weights if there is one."""
        return self.average.net if self.average else self.net

    def restore(self, found: Checkpoint) -> None:
        """Loads the state of a checkpoint."""
        restore(found, self.net, self.optimizer, self.average.net if self.average else None)
        if self.scaler:
            self.scaler.load_state_dict(self.scaler.state_dict() | found.progress["scaler"])

    def distribute(self) -> None:
        """Compiles the network if configured, and wraps it in DDP. Call it after loading weights: DDP broadcasts rank 0's."""
        if self.config.train.compile:
            # Otherwise the compiled dropout would draw other masks than the eager one.
            torch._inductor.config.fallback_random = True
            self.parallel = cast(torch.nn.Module, torch.compile(self.net))
        if distributed.world_size() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            # After the first step DDP rebuilds its buckets, which changes the order in which three or more gradients are added:
            # a resumed run would not have the bits of an uninterrupted one. With this option DDP never rebuilds them.
            fixed = devices is None and distributed.world_size() > 2
            self.parallel = torch.nn.parallel.DistributedDataParallel(
                self.parallel, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True,
                find_unused_parameters=fixed,
                # With several passes only the last one exchanges gradients, so the graph is not static. torch.compile does not
                # support a static graph (pytorch/pytorch issue 93672).
                static_graph=not (fixed or self.micro_batch or self.config.train.compile),
            )  # fmt: skip

    def step(
        self, image: torch.Tensor, label: torch.Tensor, *, step: int, learning_rate: float, rows: tuple[int, int] | None = None
    ) -> StepResult:
        """One optimizer step on image uint8[b, 3, h, w] and label uint8[b, h, w] of this worker.

        `rows`: (first row, all rows), the first of these rows in the global batch and its size. By default all shares are equal.
        """
        train = self.config.train
        return train_step(
            self.parallel, self.optimizer, self._copied(image), self._copied(label), learning_rate=learning_rate,
            objective=self.objective, seed=self.config.seed, step=step, rows=rows,
            precision=train.precision, scaler=self.scaler, micro_batch=self.micro_batch, clip_norm=train.clip_norm,
            average=self.average,
        )  # fmt: skip

    def _copied(self, array: torch.Tensor) -> torch.Tensor:
        """The array on the device.

        A GPU gets it from pinned memory on a separate stream, in parallel with earlier steps: the host runs ahead of the device.
        """
        if self.copies is None:
            return array.to(self.device)
        with torch.cuda.stream(self.copies):
            moved = array.pin_memory().to(self.device, non_blocking=True)
        steps = torch.cuda.current_stream(self.device)
        steps.wait_stream(self.copies)
        moved.record_stream(steps)  # its memory is not reused for another copy before the step has read it
        return moved


def network_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """The arguments of `build_ccnet`; a checkpoint records them."""
    arguments = {"num_classes": num_classes} | config.model.model_dump(exclude={"weights", "weights_format"})
    arguments["align_corners"] = config.model.align_corners is not False
    if consistency := config.loss.consistency:
        arguments |= {"embedding_channels": consistency.channels, "embedding_layer": consistency.layer}
    return arguments


def objective(loss: Loss, global_batch: int) -> Objective:
    """The loss with its configured terms; OHEM's default counts images of the global batch."""
    hard = loss.ohem.model_dump() if loss.ohem else {}
    if hard and hard["min_kept"] is None:
        hard["min_kept"] = PUBLISHED_KEPT * global_batch
    return Objective(
        aux_weight=loss.aux_weight,
        class_weights=loss.class_weights,
        ohem=Ohem(**hard) if hard else None,
        consistency_weight=loss.consistency.weight if loss.consistency else 0.0,
        dice_weight=loss.dice_weight,
        lovasz_weight=loss.lovasz_weight,
    )
