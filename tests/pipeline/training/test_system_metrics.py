"""The load of a node, recorded while a run trains."""

import time
from pathlib import Path
from typing import Any, cast

from pipeline.training.system_metrics import SystemMetrics, sample


class Log:
    """Keeps what a metric log would record."""

    def __init__(self) -> None:
        self.points: list[tuple[dict[str, float], int]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.points.append((values, step))


def test_a_sample_has_cpu_memory_and_disk() -> None:
    found = sample()
    assert {"cpu_utilization_percentage", "system_memory_usage_percentage", "disk_usage_percentage"} <= set(found)
    assert all(0 <= value <= 100 for key, value in found.items() if key.endswith("percentage"))
    assert found["system_memory_usage_megabytes"] > 100


def test_samples_are_recorded_until_the_block_ends(tmp_path: Path) -> None:
    log, began = Log(), int(time.time())
    with SystemMetrics(cast(Any, log), every_s=0.01):
        deadline = time.monotonic() + 30
        while len(log.points) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    number = len(log.points)
    assert number >= 3
    assert {key.split("/")[0] for values, _ in log.points for key in values} == {"system"}
    assert all(began <= step <= time.time() for _, step in log.points)
    time.sleep(0.05)
    assert len(log.points) == number, "it went on after the block"
    with SystemMetrics(cast(Any, log), node=1, every_s=0.01):
        while len(log.points) == number and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "system/1/cpu_utilization_percentage" in log.points[-1][0]
