"""Resources of a run: CPUs, bytes of crops on the way to the workers, bytes of a checkpoint."""

import math

import torch

from ccnet import build_ccnet, freeze_batch_norm
from pipeline.config.config import Config
from pipeline.loading.blocks import block_bytes, steps_per_block
from pipeline.model.learner import network_arguments

DATA_TASKS = 2
"""Ray Data tasks that must have CPUs besides the workers; with fewer, Ray Data may wait for ever without an error."""


def cpus_needed(config: Config, workers: int) -> float:
    """Logical CPUs of `workers` workers, of their data, and of a validation in the background."""
    return workers * config.train.cpus_per_worker + cpus_beside(config)


def cpus_beside(config: Config) -> float:
    """Logical CPUs needed besides the workers: for the data, and as many as a worker's for a validation in the background."""
    return DATA_TASKS * config.data.cpus_per_task + config.evaluate.background * config.train.cpus_per_worker


def workers_started(config: Config, available_cpus: float, available_gpus: float) -> int:
    """Number of workers that Ray Train starts on a cluster, at most `train.workers`. It reserves no CPUs for the data."""
    train = config.train
    by_cpu = math.floor(available_cpus / train.cpus_per_worker + 1e-9)
    by_gpu = math.floor(available_gpus) if available_gpus >= train.fewest_workers else train.most_workers
    return min(train.most_workers, by_cpu, by_gpu)


def feed_bytes(config: Config, available_cpus: float, workers: int) -> int:
    """Bytes of training crops in the object store at one time: two blocks for each running task and two for each worker."""
    train, data = config.train, config.data
    held = (workers + config.evaluate.background) * train.cpus_per_worker
    tasks = max(1, math.floor((available_cpus - held) / data.cpus_per_task + 1e-9))
    step_bytes = workers * block_bytes(config, workers) // steps_per_block(config, workers)
    return min((2 * tasks + 2 * workers) * block_bytes(config, workers), train.steps * step_bytes)


def checkpoint_bytes(config: Config, num_classes: int) -> int:
    """Bytes of one checkpoint: the state dict, a second one if weights are averaged, and SGD's momentum of each trained
    parameter."""
    with torch.device("meta"):  # there torch needs 1.5 s to import what draws the normal values of our own initialisation
        net = build_ccnet(**network_arguments(config, num_classes) | {"init": "published"})
        if config.train.freeze_norm:
            freeze_batch_norm(net.backbone)
    state = sum(tensor.nbytes for tensor in net.state_dict().values())
    momentum = sum(p.nbytes for p in net.parameters() if p.requires_grad) if config.train.momentum else 0
    return int((2 if config.train.ema_decay else 1) * state + momentum)
