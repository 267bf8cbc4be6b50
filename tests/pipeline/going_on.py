"""One of several CPU workers, started by torchrun: trains four steps, and again with a new learner from the second on.

python -m tests.pipeline.going_on FILE; rank 0 writes whether the weights are the same to the bit.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.learner import Learner
from pipeline.loading import load


def started() -> Learner:
    overrides = ["train.workers=1", "train.global_batch=6", "data.crop_size=33"]
    return Learner(load("jobs/configs/demo.yaml", overrides), num_classes=3, device=torch.device("cpu"))


def trained(learner: Learner, steps: range) -> Learner:
    learner.distribute()
    for step in steps:
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        image = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8, generator=generator)
        label = torch.randint(0, 3, (2, 33, 33), dtype=torch.uint8, generator=generator)
        learner.step(image, label, step=step, learning_rate=0.01)
    return learner


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    whole, first, second = trained(started(), range(4)), trained(started(), range(2)), started()
    second.net.load_state_dict(first.net.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    trained(second, range(2, 4))
    same = all(torch.equal(a, b) for a, b in zip(whole.net.state_dict().values(), second.net.state_dict().values(), strict=True))
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(str(same))
    dist.destroy_process_group()
