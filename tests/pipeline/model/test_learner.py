"""The configured losses reach the training step, and a learner on several workers resumes to the bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccnet.losses import Objective, Ohem
from pipeline.config.load import load
from pipeline.config.model import Loss
from pipeline.model.learner import Learner, network_arguments, objective

EVERY_LOSS = [
    "loss.ohem={thresh: 0.6, min_kept: 64, factor: 2}",
    "loss.consistency={channels: 4, layer: rcca_input}",
    "loss.dice_weight=0.5",
    "loss.lovasz_weight=0.25",
    "loss.class_weights=[1, 2, 3]",
]


def learner(*overrides: str) -> Learner:
    config = load("jobs/configs/demo.yaml", ["train.workers=1", *overrides])
    return Learner(config, num_classes=3, device=torch.device("cpu"))


def test_the_published_loss_is_the_default() -> None:
    assert objective(Loss(), 8) == Objective()
    assert objective(Loss.model_validate({"ohem": {}}), 2) == Objective(ohem=Ohem())
    assert objective(Loss.model_validate({"ohem": {"min_kept": 7}}), 8) == Objective(ohem=Ohem(min_kept=7))


def test_mining_in_the_cityscapes_recipe_keeps_what_the_published_one_does() -> None:
    """The README's --ohem-thres 0.7 --ohem-keep 100000 of each GPU; the script's bare --ohem takes 0.6 and 200,000."""
    config = load("jobs/configs/cityscapes_r101.yaml", ["loss.ohem={}"])
    gpus, per_gpu = 4, 100_000
    assert config.train.global_batch == gpus * 2
    assert objective(config.loss, config.train.global_batch).ohem == Ohem(thresh=0.7, min_kept=gpus * per_gpu)


def test_every_configured_loss_is_a_term_of_the_step() -> None:
    image = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    label = torch.randint(0, 3, (2, 33, 33), dtype=torch.uint8)
    losses = learner(*EVERY_LOSS).step(image, label, step=0, learning_rate=0.01).losses
    assert list(losses) == ["loss", "main", "dice", "lovasz", "aux", "consistency"]
    weights = {"main": 1, "dice": 0.5, "lovasz": 0.25, "aux": 0.4, "consistency": 1}
    assert float(losses["loss"]) == pytest.approx(sum(weight * float(losses[name]) for name, weight in weights.items()))
    assert list(learner().step(image, label, step=0, learning_rate=0.01).losses) == ["loss", "main", "aux"]


def test_the_embedding_is_recorded_with_the_network() -> None:
    arguments = network_arguments(learner(*EVERY_LOSS).config, num_classes=3)
    assert (arguments["embedding_channels"], arguments["embedding_layer"]) == (4, "rcca_input")
    assert "embedding_channels" not in network_arguments(learner().config, num_classes=3)


def test_the_backbone_starts_as_configured() -> None:
    stem = "backbone.conv1.weight"
    kaiming, published = (learner(f"model.init={init}").net.state_dict()[stem].abs().max() for init in ("kaiming", "published"))
    assert published <= 27**-0.5 < kaiming  # PyTorch's default is uniform within 1 / sqrt(fan in)


def test_three_workers_that_resume_have_the_bits_of_three_that_were_not_interrupted(tmp_path) -> None:
    """The sum of two gradients does not depend on their order; that of three depends on their place in DDP's buckets."""
    command = [sys.executable, "-m", "tests.support.going_on", str(tmp_path / "same")]
    subprocess.run(command, cwd=Path(__file__).parents[3], check=True, timeout=300)
    assert (tmp_path / "same").read_text() == "True"
