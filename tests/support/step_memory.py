"""Prints the memory that real training steps take, and what `step_cost` says: `python -m tests.support.step_memory`.

Each point runs in a process of its own, whose pages Linux counts (VmHWM). Every block of more than 64 KiB is given back at once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.model.cost import step_cost
from pipeline.model.learner import Learner
from tests.pipeline.preflight.test_resources import config

CLASSES = 6
ROOT = Path(__file__).parents[2]


def settings(images: int, changed: dict[str, Any]) -> Any:
    return config(train__global_batch=images, train__workers=1, **changed)


def steps(made: Any, number: int) -> Learner:
    """Makes steps on images without content."""
    learner, (height, width), images = Learner(made, CLASSES, torch.device("cpu")), made.data.crop_size, made.train.global_batch
    for step in range(number):
        image = torch.zeros(images, 3, height, width, dtype=torch.uint8)
        learner.step(image, torch.zeros(images, height, width, dtype=torch.uint8), step=step, learning_rate=0.01)
    return learner


def peak(images: int, changed: dict[str, Any]) -> int:
    """Bytes by which this process grew at most during some steps."""
    steps(settings(2, {"model__backbone": "small"}), 1)  # the libraries' own memory is not that of a step
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    steps(settings(images, changed), 3)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 - before


def measured_peak(images: int, changed: dict[str, Any]) -> int:
    """`peak` in a process of its own."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    line = [sys.executable, "-m", "tests.support.step_memory", json.dumps([images, changed])]
    return int(subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    if len(sys.argv) == 2:
        return print(peak(*json.loads(sys.argv[1])))
    print("| backbone | crop | R | images | measured | counted | ratio |\n| --- | --- | --- | --- | --- | --- | --- |")
    for backbone, images in (("small", 16), ("resnet18", 8), ("resnet50", 2)):
        for crop, passes in ((97, 0), (97, 2), (161, 1), (161, 3)):
            changed = {"model__backbone": backbone, "data__crop_size": crop, "model__recurrence": passes}
            found = measured_peak(images, changed) / 2**20
            counted = step_cost(settings(images, changed), CLASSES, images).peak_bytes / 2**20
            line = f"{found:.0f} MiB | {counted:.0f} MiB | {counted / found:.2f}"
            print(f"| {backbone} | {crop} | {passes} | {images} | {line} |", flush=True)


if __name__ == "__main__":
    main()
