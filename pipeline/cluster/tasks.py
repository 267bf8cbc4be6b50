"""Spreads images over Ray tasks, or processes them here if there is no cluster, and yields each result as it arrives.

An exception of a task reaches the caller as the task raised it, with or without a cluster (`task_errors`).
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from ccnet import distributed
from pipeline.cluster import connect
from pipeline.cluster.task_errors import task_errors
from pipeline.config.config import Config

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[list[int], torch.device], Iterator[T]]
"""Yields one result for each image number that it is given, in their order, computed on the device."""
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LISTS = 0.5
"""A task sends its results in lists: for each value that a task yields, Ray's processes need 2 ms of the cores."""
STARTS = 4
"""Starts of a task, as Ray's default, whose process dies each time before a result arrives."""
LESS_MEMORY = "set evaluate.window=769, or lower evaluate.scale or train.workers"
"""How the tasks of `map_images` need less memory."""


def map_images(work: Work[T], num_images: int, config: Config) -> Iterator[T]:
    """The results of `work` on images 0 .. num_images - 1, in the order of arrival; logs the progress.

    This process does all the work with `train.workers` = 0, and without a cluster if this machine has at most one GPU, because
    a cluster takes seconds to start. Otherwise there are `train.workers` Ray tasks: of [min, max], the number of GPUs in the
    cluster if it is in that range, else max. Each task gets a GPU if there are enough for all. Of n tasks, task r has the images
    r, r + n, ...
    A task whose process dies is started again with the images whose results have not arrived. Raises what `work` raises, or
    TaskDied after `STARTS` starts.
    """
    here = config.train.local or (not connect.joined() and torch.cuda.device_count() <= 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = work(list(range(num_images)), device) if here else _in_tasks(work, num_images, config)
    started = last_line = time.monotonic()
    for num_done, result in enumerate(results, 1):
        if (now := time.monotonic()) - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            logger.info("%d/%d images after %.0f s", num_done, num_images, now - started)
        yield result


def _in_tasks(work: Work[T], num_images: int, config: Config) -> Iterator[T]:
    connect.join()
    num_tasks = min(_num_workers(config), num_images)
    num_gpus = int(connect.gpus_for(num_tasks))
    # DEFAULT: outside of the placement group of a trial, which has no room for it.
    cpus = config.train.cpus_per_worker
    task: Any = ray.remote(num_cpus=cpus, num_gpus=num_gpus, scheduling_strategy="DEFAULT", max_retries=0)(_share)
    shared = ray.put(work)

    def start(numbers: list[int]) -> Any:
        return task.remote(shared, numbers, num_tasks)

    missing = [list(range(rank, num_images, num_tasks)) for rank in range(num_tasks)]
    running = {start(numbers): (numbers, 1) for numbers in missing}
    with task_errors(LESS_MEMORY):
        while running:
            ready: Any = ray.wait(list(running))[0][0]
            numbers, starts = running.pop(ready)
            try:
                results: list[T] = ray.get(next(ready))
            except StopIteration:
                continue
            except RayError as death:
                if isinstance(death, RayTaskError) or starts == STARTS:
                    raise
                running[start(numbers)] = numbers, starts + 1
                continue
            running[ready] = numbers[len(results) :], 1
            yield from results


def _num_workers(config: Config) -> int:
    train, num_gpus = config.train, int(ray.cluster_resources().get("GPU", 0))
    return num_gpus if train.fewest_workers <= num_gpus <= train.most_workers else train.most_workers


def _share(work: Work[T], numbers: list[int], num_tasks: int) -> Iterator[list[T]]:
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    torch.set_num_threads(distributed.num_threads(num_tasks))
    results, since = list[T](), time.monotonic()
    for result in work(numbers, device):
        results.append(result)
        if (now := time.monotonic()) - since >= SECONDS_BETWEEN_LISTS:
            yield results
            results, since = [], now
    if results:
        yield results
