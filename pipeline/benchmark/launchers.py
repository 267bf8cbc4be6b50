"""The same training loop on the same processes, started by Ray Train and by torchrun: first both in turns, then each alone."""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import ray
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ccnet import distributed
from pipeline import own_cores
from pipeline.benchmark.device import own_device, seconds
from pipeline.benchmark.network import NUM_CLASSES, drawn_batch
from pipeline.cluster import connect
from pipeline.cluster.fit import fit
from pipeline.config.config import Config
from pipeline.config.load import parse
from pipeline.loading.sampler import share
from pipeline.model.learner import Learner

logger = logging.getLogger(__name__)

RAY_TRAIN, TORCHRUN = LAUNCHERS = ("Ray Train", "torchrun")
TURNS, POLL_S, PATIENCE_S = "turns", 0.05, 600

Blocks = list[list[float]]
"""Seconds of each step of rank 0, in blocks of `benchmark.steps`."""


class LauncherFigure(NamedTuple):
    """Figures of the loop under one launcher."""

    launcher: str
    workers: int
    backbone: str
    crop: tuple[int, int]
    global_batch: int
    steps: int
    rounds: int
    device: str
    step_s: float
    """Median step while both are running and take turns, a block of steps each: both launchers see the same background load."""
    lowest_s: float
    highest_s: float
    """Lowest and highest of the blocks' medians."""
    ratio: float
    """Step time divided by torchrun's in the neighbouring block; median over the rounds."""
    alone_s: float
    """Median step while the other launcher is not running; Ray's own processes take their share of the cores."""
    whole_s: float
    """Seconds of the run alone, from the launch to the end of the last process."""


class Turns(NamedTuple):
    """Decides whose block it is, by a file that holds the number of finished blocks."""

    file: Path
    place: int
    """Position of this launcher in each round."""

    def wait(self, round_number: int) -> None:
        """Waits until it is this launcher's turn. Raises RuntimeError when that takes more than `PATIENCE_S`."""
        deadline = time.monotonic() + PATIENCE_S
        while int(self.file.read_text() or -1) != len(LAUNCHERS) * round_number + self.place:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the other launcher did not end its block within {PATIENCE_S} s")
            time.sleep(POLL_S)

    def end(self) -> None:
        """Ends this launcher's block."""
        self.file.write_text(str(int(self.file.read_text()) + 1))


class Task(NamedTuple):
    """Arguments of one process."""

    config: Config
    num_workers: int
    blocks: Path
    """File for the result."""
    turns: Turns | None = None


def measure_launchers(config: Config, counts: tuple[int, ...] = (1, 2)) -> Iterator[list[LauncherFigure]]:
    """Figures for each number of workers; if there are GPUs, only for numbers with a GPU for each worker."""
    for num_workers in counts:
        if not torch.cuda.is_available() or num_workers <= torch.cuda.device_count():
            with tempfile.TemporaryDirectory() as folder:
                yield _measure(config, num_workers, Path(folder))


def _measure(config: Config, num_workers: int, folder: Path) -> list[LauncherFigure]:
    blocks = dict(zip(LAUNCHERS, _in_turns(config, num_workers, folder), strict=True))
    steps = {name: [statistics.median(block) for block in mine] for name, mine in blocks.items()}
    ratio = statistics.median(ours / theirs for ours, theirs in zip(steps[RAY_TRAIN], steps[TORCHRUN], strict=True))
    logger.info("%d workers in turns: a step under Ray Train takes %.3f times that under torchrun", num_workers, ratio)
    figures = []
    for name, launch in zip(LAUNCHERS, (_under_ray, _under_torchrun), strict=True):
        task = Task(config, num_workers, folder / "alone.json")
        whole_s = seconds(partial(launch, task), torch.device("cpu"))
        alone = [step for block in _read(task.blocks) for step in block]
        figure = LauncherFigure(
            name, num_workers, config.model.backbone, config.data.crop_size, config.train.global_batch, config.benchmark.steps,
            config.benchmark.rounds, own_device().type, statistics.median(steps[name]), min(steps[name]), max(steps[name]),
            ratio if name == RAY_TRAIN else 1.0, statistics.median(alone), whole_s,
        )  # fmt: skip
        figures.append(figure)
    return figures


def _in_turns(config: Config, num_workers: int, folder: Path) -> list[Blocks]:
    """Blocks of each launcher; both run at the same time."""
    turns = folder / TURNS
    turns.write_text("0")
    tasks = [Task(config, num_workers, folder / f"{n}.json", Turns(turns, n)) for n in range(len(LAUNCHERS))]
    command, environment = _torchrun(tasks[1])
    other = subprocess.Popen(command, env=environment)
    try:
        _under_ray(tasks[0])
        if other.wait(PATIENCE_S):
            raise RuntimeError(f"torchrun ended with exit status {other.returncode}: its messages are above")
    finally:
        other.terminate()
        other.wait()
    return [_read(task.blocks) for task in tasks]


def _read(file: Path) -> Blocks:
    return cast(Blocks, json.loads(file.read_text()))


def loop(task: Task, device: torch.device) -> None:
    """Trains on this process's rows of a random batch, in blocks of steps. Rank 0 writes the blocks' seconds to the file.

    There is one block more than rounds: the first one warms up.
    """
    config = task.config
    torch.set_num_threads(distributed.num_threads(task.num_workers))
    learner = Learner(config, NUM_CLASSES, device)
    learner.distribute()
    _, mine = share(config.train.global_batch, distributed.rank(), distributed.world_size())
    image, label = drawn_batch(mine, config.data.crop_size, seed=distributed.rank())

    def run(step: int) -> float:
        return seconds(lambda: learner.step(image, label, step=step, learning_rate=1e-3), device)

    steps, blocks = config.benchmark.steps, []
    for number in range(config.benchmark.rounds + 1):
        if task.turns:
            task.turns.wait(number)
        blocks.append([run(step) for step in range(number * steps, (number + 1) * steps)])
        if dist.is_initialized():
            dist.barrier()
        if task.turns and distributed.rank() == 0:
            task.turns.end()
    if distributed.rank() == 0:
        task.blocks.write_text(json.dumps(blocks[1:]))


def _under_ray(task: Task) -> None:
    """Runs the loop on a cluster that exists for this run only, as torchrun's processes exist for their run only."""
    connect.join(num_cpus=max(task.num_workers, own_cores()))
    try:
        trainer = TorchTrainer(
            lambda: loop(task, ray.train.torch.get_device()),
            scaling_config=ScalingConfig(num_workers=task.num_workers, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(name="bench", storage_path=str(task.blocks.parent)),
        )
        fit(trainer)
    finally:
        ray.shutdown()


def _under_torchrun(task: Task) -> None:
    command, environment = _torchrun(task)
    subprocess.run(command, env=environment, check=True)


def _torchrun(task: Task) -> tuple[list[str], dict[str, str]]:
    """Command and environment of torchrun."""
    given = task.blocks.with_suffix(".task")
    place = task.turns and task.turns.place
    given.write_text(json.dumps([task.config.model_dump(mode="json"), task.num_workers, str(task.blocks), place]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={task.num_workers}"]
    threads = {"OMP_NUM_THREADS": str(distributed.num_threads(task.num_workers))}
    return [*command, "-m", "pipeline.benchmark.launchers", str(given)], os.environ | threads


def _main(given: str) -> None:
    """Entry of a process that torchrun started."""
    on_gpus, local_rank = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    settings, num_workers, blocks, place = json.loads(Path(given).read_text())
    turns = None if place is None else Turns(Path(blocks).with_name(TURNS), place)
    loop(Task(parse(settings), num_workers, Path(blocks), turns), device)
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
