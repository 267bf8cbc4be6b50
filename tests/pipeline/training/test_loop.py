"""A step of a worker whose memory runs short, which torch says with an error of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.load import load
from pipeline.data.manifest import Manifest
from pipeline.fault_tolerance.failures import MemoryShort
from pipeline.fault_tolerance.step_failures import MICRO_BATCH, noted_micro_batch
from pipeline.model.learner import Learner
from pipeline.storage.store import Store
from pipeline.training.loop import _step
from pipeline.training.run import Job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Torch has no memory for any image."""

    def short(*image: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", short)
    config = load("jobs/configs/demo.yaml", ["train.workers=1", "train.global_batch=5", "data.crop_size=17"])
    return Job(config, Manifest("tiny", "generated", (), (), {}, {}, True, ""), Store(str(tmp_path)), "", "")


def step(job: Job, micro_batch: int | None) -> None:
    learner = Learner(job.config, num_classes=3, device=torch.device("cpu"))
    learner.micro_batch = micro_batch
    _step(job, learner, torch.zeros(5, 3, 17, 17, dtype=torch.uint8), torch.zeros(5, 17, 17, dtype=torch.uint8), 7, 0.01)


@pytest.mark.parametrize(("used", "then"), [(None, 3), (3, 2), (2, 1)])
def test_half_as_many_images_a_pass_are_noted_for_the_attempts_to_come(job: Job, used: int | None, then: int) -> None:
    with pytest.raises(MemoryShort, match=f"{used or 5} images a pass do not fit at step 7; going on with {then}") as raised:
        step(job, used)
    assert raised.value.smaller
    assert json.loads(job.checkpoints.read(MICRO_BATCH)) == {"micro_batch": then, "step": 7}
    assert noted_micro_batch(job) == then


def test_what_one_image_needs_is_said_when_it_does_not_fit(job: Job) -> None:
    with pytest.raises(MemoryShort, match=r"one image of \(17, 17\) does not fit: lower data.crop_size, or .*bf16") as raised:
        step(job, 1)
    assert not raised.value.smaller
    assert noted_micro_batch(job) is None
