"""Trains a configuration in a plain loop, without Ray and without faults: the reference for trainings with faults.

`undisturbed(folder, words, environment)` runs it on the configured number of workers; it returns the last checkpoint's folder.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from ccnet import distributed
from ccnet.optim import poly_learning_rate
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import load
from pipeline.data.manifest import open_data
from pipeline.loading.feed import Feed
from pipeline.model.learner import Learner


def undisturbed(folder: Path, words: list[str], environment: dict[str, str]) -> Path:
    """Trains the configuration of `words` (file, overrides). Returns the local folder of the checkpoint after the last step."""
    config = load(words[0], words[1:])
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={config.train.workers}"]
    command = [sys.executable, "-m", *launcher, "-m", "tests.chaos.plain_loop", str(folder), *words]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True, timeout=300)
    return folder / checkpoint.folder_name(config.train.steps)


def train(config: Config, threads: int) -> Learner:
    """One worker's part, with as many threads as a worker of Ray Train: their number sets the order of sums."""
    torch.set_num_threads(threads)
    feed = Feed(config, open_data(config), 0, distributed.world_size())
    learner = Learner(config, len(feed.manifest.class_names), torch.device("cpu"))
    learner.distribute()
    rates = config.train
    for step in range(rates.steps):
        image, label, _ = feed.crops(feed.sampler.positions(step, step + 1, distributed.rank(), feed.workers))
        rate = poly_learning_rate(rates.learning_rate, step, rates.steps, rates.power, rates.warmup_steps, rates.min_lr)
        learner.step(torch.from_numpy(np.moveaxis(image, 3, 1)), torch.from_numpy(label), step=step, learning_rate=rate)
    return learner


if __name__ == "__main__":
    dist.init_process_group("gloo")
    made = load(sys.argv[2], sys.argv[3:])
    learned = train(made, distributed.num_threads(distributed.world_size()))
    if dist.get_rank() == 0:
        target = Path(sys.argv[1], checkpoint.folder_name(made.train.steps))
        target.mkdir(parents=True)
        progress = {"step": made.train.steps, "metrics": {"miou": 0.0}}
        checkpoint.save(target, checkpoint.snapshot(learned.net, learned.optimizer), progress)
    dist.destroy_process_group()
