"""Small checkpoints like those of a run."""

import copy
from pathlib import Path

import torch

from ccnet.optim import build_optimizer
from pipeline.checkpoints import checkpoint
from pipeline.storage.store import Store

Net = torch.nn.Module


def step(net: Net, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One optimizer step on random pictures."""
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    net(image).square().sum().backward()
    optimizer.step()


def trained(seed: int) -> tuple[Net, torch.optim.Optimizer]:
    """A network in channels_last with batch norm, and its optimizer, after one step."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    net = net.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(net, 0.1, 0.9, 1e-4)
    step(net, optimizer, seed)
    return net, optimizer


def average_of(net: Net) -> Net:
    """Other weights under the same names."""
    average = copy.deepcopy(net).eval().requires_grad_(False)
    for parameter in average.parameters():
        parameter.mul_(0.5)
    return average


def saved(store: Store, scratch: Path, step: int, miou: float | None = 0.5, *, averaged: bool = False, **recorded: object) -> Net:
    """Stores the checkpoint of a network trained under seed `step`, with `recorded` in its progress; returns the network."""
    net, optimizer = trained(step)
    metrics = {"num_images": 3} if miou is None else {"miou": miou}
    local = scratch / f"local-{step}"
    local.mkdir(exist_ok=True)
    state = checkpoint.snapshot(net, optimizer, average_of(net) if averaged else None)
    checkpoint.save(local, state, {"step": step, "metrics": metrics} | recorded)
    checkpoint.upload(local, store, checkpoint.folder_name(step))
    return net


def latest(store: Store) -> checkpoint.Checkpoint | None:
    """The newest valid checkpoint, found and loaded as a training does it."""
    step = checkpoint.latest_step(store)
    return checkpoint.load(store, checkpoint.folder_name(step)) if step else None


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are the same bit for bit."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)
