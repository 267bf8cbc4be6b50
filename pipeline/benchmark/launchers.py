"""The same training loop on the same number of processes, started by Ray Train and by torchrun, in turns."""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline import cluster, workers
from pipeline.config import Config
from pipeline.learner import Learner
from pipeline.loading import parse
from pipeline.plan import share

logger = logging.getLogger(__name__)

NUM_WORKERS, WARM_UP, NUM_CLASSES = 2, 3, 19
RAY_TRAIN, TORCHRUN = "Ray Train", "torchrun"


class LauncherFigure(NamedTuple):
    """The loop under one launcher; medians of the rounds."""

    launcher: str
    workers: int
    backbone: str
    crop: tuple[int, int]
    global_batch: int
    steps: int
    rounds: int
    device: str
    step_s: float
    """Median step of rank 0."""
    lowest_s: float
    highest_s: float
    whole_s: float
    """From the launch to the end of the last process."""
    ratio: float
    """Step time over that under torchrun in the same round, median over the rounds."""

    def json(self) -> str:
        """One line."""
        return json.dumps({key: round(v, 5) if isinstance(v, float) else v for key, v in self._asdict().items()})


def measure_launchers(config: Config) -> Iterator[list[LauncherFigure]]:
    """Both launchers in every round; the processes do not share a machine's cores with those of another round."""
    benchmark, train = config.benchmark, config.train
    launchers: dict[str, Callable[[Config], list[float]]] = {RAY_TRAIN: _under_ray, TORCHRUN: _under_torchrun}
    steps: dict[str, list[float]] = {name: [] for name in launchers}
    wholes: dict[str, list[float]] = {name: [] for name in launchers}
    cluster.connect(num_cpus=max(NUM_WORKERS, len(os.sched_getaffinity(0))))
    try:
        for turn in range(benchmark.rounds):
            for name, launch in launchers.items():
                start = time.perf_counter()
                steps[name].append(statistics.median(launch(config)))
                wholes[name].append(time.perf_counter() - start)
            said = "  ".join(f"{name} {1e3 * seconds[-1]:.1f}" for name, seconds in steps.items())
            logger.info("round %d of %d, ms a step: %s", turn + 1, benchmark.rounds, said)
    finally:
        ray.shutdown()
    yield [
        LauncherFigure(
            name, NUM_WORKERS, config.model.backbone, config.data.crop, train.global_batch, benchmark.steps, benchmark.rounds,
            "cuda" if torch.cuda.is_available() else "cpu", statistics.median(steps[name]), min(steps[name]), max(steps[name]),
            statistics.median(wholes[name]),
            statistics.median(mine / theirs for mine, theirs in zip(steps[name], steps[TORCHRUN], strict=True)),
        )
        for name in launchers
    ]  # fmt: skip


def loop(config: Config) -> list[float]:
    """Seconds of each step of this process after a few that warm up, all on one batch that it draws itself.

    In a process group, on the GPU of this process's local rank where there is one.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(workers.num_threads(NUM_WORKERS))
    learner = Learner(config, NUM_CLASSES, device)
    learner.distribute()
    _, mine = share(config.train.global_batch, workers.rank(), workers.world_size())
    random, (height, width) = np.random.default_rng(workers.rank()), config.data.crop
    image = torch.from_numpy(random.integers(0, 256, (mine, height, width, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    label = torch.from_numpy(random.integers(0, NUM_CLASSES, (mine, height, width), dtype=np.uint8))
    seconds = []
    for step in range(WARM_UP + config.benchmark.steps):
        start = time.perf_counter()
        float(learner.step(image, label, step=step, learning_rate=1e-3).losses["loss"])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def _under_ray(config: Config) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "seconds.json")

        def work() -> None:
            seconds = loop(config)
            if workers.rank() == 0:
                file.write_text(json.dumps(seconds))

        TorchTrainer(
            work,
            scaling_config=ScalingConfig(num_workers=NUM_WORKERS, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(name="bench", storage_path=folder),
        ).fit()
        return cast(list[float], json.loads(file.read_text()))


def _under_torchrun(config: Config) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        given, file = Path(folder, "config.json"), Path(folder, "seconds.json")
        given.write_text(json.dumps(config.model_dump(mode="json")))
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_WORKERS}",
             "-m", "pipeline.benchmark.launchers", str(given), str(file)],
            env=os.environ | {"OMP_NUM_THREADS": str(workers.num_threads(NUM_WORKERS))}, check=True,
        )  # fmt: skip
        return cast(list[float], json.loads(file.read_text()))


def _main(given: str, file: str) -> None:
    """A process of torchrun."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    raw: dict[str, Any] = json.loads(Path(given).read_text())
    seconds = loop(parse(raw))
    if workers.rank() == 0:
        Path(file).write_text(json.dumps(seconds))
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
