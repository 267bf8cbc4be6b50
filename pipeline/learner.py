"""What learns on one worker: network, objective and optimizer as configured."""

from typing import Any

import torch

from ccnet import build_ccnet
from ccnet.layers import synchronise_batch_norm
from ccnet.losses import Objective, Ohem
from ccnet.optim import build_optimizer
from ccnet.step import train_step
from pipeline import workers
from pipeline.config import Config
from pipeline.settings import Loss


class Learner:
    """Network, its DDP wrapper and optimizer on this worker's device."""

    def __init__(self, config: Config, num_classes: int, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self.model = network_arguments(config, num_classes)
        self.objective = objective(config.loss)
        net = synchronise_batch_norm(build_ccnet(**self.model), device)
        self.net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train = config.train
        self.optimizer = build_optimizer(self.net, train.learning_rate, train.momentum, train.weight_decay)
        self.parallel = self.net

    def distribute(self) -> None:
        """Wraps the network in DDP; after the weights are final, because DDP broadcasts rank 0's."""
        if workers.world_size() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.parallel = torch.nn.parallel.DistributedDataParallel(
                self.net, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
            )

    def step(self, image: torch.Tensor, label: torch.Tensor, step: int, learning_rate: float) -> dict[str, torch.Tensor]:
        """One optimizer step; returns the global batch's mean "loss" and that of each of its terms."""
        return train_step(
            self.parallel, self.optimizer, image.to(self.device, non_blocking=True), label.to(self.device, non_blocking=True),
            learning_rate=learning_rate, objective=self.objective, seed=self.config.seed, step=step,
        )  # fmt: skip


def network_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """The arguments of `build_ccnet`; a checkpoint records them."""
    arguments = {"num_classes": num_classes} | config.model.model_dump()
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
