"""What learns on one worker: network, objective, optimizer, and what goes with them as configured."""

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


class Learner:
    """Network, its DDP wrapper, optimizer, average and gradient scaler on this worker's device."""

    def __init__(self, config: Config, num_classes: int, device: torch.device, initial: Pretrained | None = None) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device, train = config, device, config.train
        self.model = network_arguments(config, num_classes)
        self.initial_sha256 = initial.sha256 if initial else None
        self.objective = objective(config.loss)
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
        """The network that is validated and kept for predictions: the average of the weights, where there is one."""
        return self.average.net if self.average else self.net

    def restore(self, found: Checkpoint) -> None:
        """Takes the state of a checkpoint."""
        restore(found, self.net, self.optimizer, self.average.net if self.average else None)
        if self.scaler:
            self.scaler.load_state_dict(self.scaler.state_dict() | found.progress["scaler"])

    def distribute(self) -> None:
        """Compiles the network where asked, and wraps it in DDP; after the weights are final, because DDP broadcasts rank 0's."""
        if self.config.train.compile:
            # Otherwise the compiled dropout draws other masks than the plain one.
            torch._inductor.config.fallback_random = True
            self.parallel = cast(torch.nn.Module, torch.compile(self.net))
        if distributed.world_size() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            # DDP lays its buckets out anew after the first step, and with them the order in which three and more gradients are
            # added: a run that goes on would not have the bits of one that was never interrupted. Not so with this option.
            fixed = devices is None and distributed.world_size() > 2
            self.parallel = torch.nn.parallel.DistributedDataParallel(
                self.parallel, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True,
                find_unused_parameters=fixed,
                # Several passes exchange gradients in the last one alone; and torch.compile asks for a graph that is not.
                static_graph=not (fixed or self.micro_batch or self.config.train.compile),
            )  # fmt: skip

    def step(
        self, image: torch.Tensor, label: torch.Tensor, *, step: int, learning_rate: float, rows: tuple[int, int] | None = None
    ) -> StepResult:
        """One optimizer step on image uint8[b, 3, h, w] and label uint8[b, h, w] of this worker.

        `rows`: (first row, all rows): these are the rows of the global batch from the first on. By default all shares are equal.
        """
        train = self.config.train
        return train_step(
            self.parallel, self.optimizer, self._copied(image), self._copied(label), learning_rate=learning_rate,
            objective=self.objective, seed=self.config.seed, step=step, rows=rows,
            precision=train.precision, scaler=self.scaler, micro_batch=self.micro_batch, clip_norm=train.clip_norm,
            average=self.average,
        )  # fmt: skip

    def _copied(self, array: torch.Tensor) -> torch.Tensor:
        """The array on the device; to a GPU from pinned memory and beside the steps before, which the host is ahead of."""
        if self.copies is None:
            return array.to(self.device)
        with torch.cuda.stream(self.copies):
            moved = array.pin_memory().to(self.device, non_blocking=True)
        steps = torch.cuda.current_stream(self.device)
        steps.wait_stream(self.copies)
        moved.record_stream(steps)  # its memory is not another copy's before the step has read it
        return moved


def network_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """The arguments of `build_ccnet`; a checkpoint records them."""
    arguments = {"num_classes": num_classes} | config.model.model_dump(exclude={"weights", "weights_format"})
    if consistency := config.loss.consistency:
        arguments |= {"embedding_channels": consistency.channels, "embedding_layer": consistency.layer}
    return arguments


def objective(loss: Loss) -> Objective:
    """The configured terms of the loss."""
    return Objective(
        aux_weight=loss.aux_weight,
        class_weights=loss.class_weights,
        ohem=Ohem(**loss.ohem.model_dump()) if loss.ohem else None,
        consistency_weight=loss.consistency.weight if loss.consistency else 0.0,
        dice_weight=loss.dice_weight,
        lovasz_weight=loss.lovasz_weight,
    )
