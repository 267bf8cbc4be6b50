"""Three CPU workers train four steps; then a new learner resumes from the state after two steps and trains the last two again.

python -m tests.support.going_on FILE; rank 0 writes whether the weights are the same to the bit.
"""

import copy
import multiprocessing
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer imports it: imported here once for all workers
import torch.distributed as dist

from pipeline.config.load import load
from pipeline.model.learner import Learner

NUM_WORKERS = 3


def started() -> Learner:
    overrides = ["train.workers=1", "train.global_batch=6", "data.crop_size=33"]
    return Learner(load("jobs/configs/demo.yaml", overrides), num_classes=3, device=torch.device("cpu"))


def train(learner: Learner, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        image = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8, generator=generator)
        label = torch.randint(0, 3, (2, 33, 33), dtype=torch.uint8, generator=generator)
        learner.step(image, label, step=step, learning_rate=0.01)


def work(rank: int, file: str) -> None:
    """The process of one worker."""
    patience = timedelta(minutes=2)  # in case another worker ends early
    dist.init_process_group("gloo", f"file://{file}.rendezvous", rank=rank, world_size=NUM_WORKERS, timeout=patience)
    torch.set_num_threads(1)
    whole = started()
    whole.distribute()
    train(whole, range(2))
    kept = copy.deepcopy((whole.net.state_dict(), whole.optimizer.state_dict()))
    train(whole, range(2, 4))
    second = started()
    second.net.load_state_dict(kept[0])
    second.optimizer.load_state_dict(kept[1])
    second.distribute()
    train(second, range(2, 4))
    same = all(torch.equal(a, b) for a, b in zip(whole.net.state_dict().values(), second.net.state_dict().values(), strict=True))
    if rank == 0:
        Path(file).write_text(str(same))
    dist.destroy_process_group()


if __name__ == "__main__":
    # Forked, so that torch is imported once. That is safe because no thread has started yet.
    forks = multiprocessing.get_context("fork")
    processes = [forks.Process(target=work, args=(rank, sys.argv[1])) for rank in range(NUM_WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
