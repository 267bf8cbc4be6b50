"""Load of the nodes that train, under the names of MLflow's own monitor, so that its page of system metrics shows them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import psutil
import ray.train
import torch

from pipeline.tracking.delivery import SYSTEM
from pipeline.tracking.metric_log import MetricLog
from pipeline.training.metric_logs import open_log
from pipeline.training.run import Run

EVERY_S = 10.0
"""Seconds between two samples."""
MB = 1e6


@contextmanager
def node_metrics(run: Run, log: MetricLog | None) -> Iterator[None]:
    """Records the load of this node in this block, if the worker is the node's first. `log`: that of rank 0, else None."""
    context = ray.train.get_context()
    if context.get_local_rank() > 0:
        yield
        return
    several = context.get_world_size() > context.get_local_world_size()
    own = log or open_log(run)
    try:
        with SystemMetrics(own, context.get_node_rank() if several else None):
            yield
    finally:
        if own is not log:
            own.close()


class SystemMetrics:
    """Records CPU, memory, disk, network and GPUs of this node in a thread, while the block runs.

    MLflow's monitor sends each point at once, and loses those that a server does not take; a metric log keeps them.
    """

    def __init__(self, log: MetricLog, node: int | None = None, every_s: float = EVERY_S) -> None:
        """`node`: number of this node among several; None for the only one."""
        self._log, self._every_s, self._end = log, every_s, threading.Event()
        self._prefix = SYSTEM if node is None else f"{SYSTEM}{node}/"
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        psutil.cpu_percent()  # the first answer means nothing
        before = psutil.net_io_counters()
        while not self._end.wait(self._every_s):
            values = sample()
            now = psutil.net_io_counters()
            if now and before:  # a container may have none
                values["network_receive_megabytes"] = (now.bytes_recv - before.bytes_recv) / MB
                values["network_transmit_megabytes"] = (now.bytes_sent - before.bytes_sent) / MB
            # The time as the step: an attempt that resumes must not repeat the steps of the one before.
            self._log.metrics({f"{self._prefix}{key}": value for key, value in values.items()}, int(time.time()))


def sample() -> dict[str, float]:
    """The load of this node now, in percent and megabytes: CPUs since the last call, memory, root disk, this process's GPUs."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MB,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_megabytes": disk.used / MB,
        "disk_usage_percentage": disk.percent,
    }
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        values[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / MB
        values[f"gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
    return values
