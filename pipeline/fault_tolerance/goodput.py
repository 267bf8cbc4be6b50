"""Where the time of a run went, how fast its steps were and what it cost: counted on rank 0, added up over all attempts.

The share of a device's peak is not among it: decision 140.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.config.config import Config
from pipeline.formatting import duration, percent

PARTS = ("stepping", "waiting", "validating", "saving", "starting", "lost", "other")
ABOUT = {
    "stepping": "computes steps",
    "waiting": "waits for data",
    "validating": "validates",
    "saving": "waits for checkpoints",
    "starting": "starts, up to the first step",
    "lost": "lost to interruptions: steps computed again, restarts",
    "other": "other: logs, pictures",
}
"""What a run does in each part."""
HEADINGS = ("a run", "share", "time")


class Goodput(NamedTuple):
    """Seconds for which a run held its workers, by what rank 0 did in them, up to its newest checkpoint."""

    stepping: float = 0.0
    """Computing the steps that count. A step that is computed again counts once: its first time is in `lost`."""
    waiting: float = 0.0
    """Waiting for data, while the device has nothing to compute."""
    validating: float = 0.0
    saving: float = 0.0
    """Waiting for checkpoints. Storing one in parallel with training takes no time here."""
    starting: float = 0.0
    """From the start of a command's first workers to their first step."""
    lost: float = 0.0
    """In a later attempt of a command: from the checkpoint that it resumes from, or the command's start if that is later, to its
    first step."""
    other: float = 0.0
    """Everything else: logging, pictures, checks."""
    steps: int = 0
    """Steps computed in `stepping`."""
    worker_s: float = 0.0
    """The sum of all parts times the number of workers, attempt by attempt."""
    until: float = 0.0
    """Unix time up to which all this is counted."""

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self[: len(PARTS)])

    def points(self, config: Config, flops: int = 0) -> dict[str, float]:
        """Metric points; none if nothing was counted, as by an older version.

        Their groups, `wall/` in seconds and `work/`, follow `train/` and `val/` in MLflow's pages, which are sorted by name.
        `flops`: floating-point operations of a training image, which are those of three forward passes; 0 if not counted.
        """
        if not self.total:
            return {}
        rate = self.steps * config.train.global_batch / max(self.stepping, 1e-9)
        points = {f"wall/{part}_s": seconds for part, seconds in zip(PARTS, self, strict=False)}
        points |= {"work/goodput": self.stepping / self.total, "work/images_per_stepping_s": rate}
        points |= {"work/gflop_per_stepping_s": rate * flops / 1e9} if flops else {}
        points |= {"work/worker_hours": self.worker_s / 3600}
        price = config.stop.cost_per_worker_hour
        return points | ({"work/cost": self.worker_s / 3600 * price} if price else {})


class Stopwatch:
    """Gives each second of an attempt to one part of the run's time, so that the parts add up to the whole."""

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`workers`: number of training workers of this attempt."""
        self.workers, self._clock, self.before = workers, clock, Goodput()
        self.seconds, self.steps, self._since = dict.fromkeys(PARTS, 0.0), 0, clock()
        self.rest = "starting"
        """The part that has the seconds which no other part has."""

    def resume(self, before: Goodput, lost_s: float | None) -> None:
        """Counts from where a checkpoint's record ends. `lost_s`: seconds that an interruption cost, None if none did."""
        self.lap()
        self.before = before
        if lost_s is not None:
            lost_s = max(lost_s, sum(self.seconds.values()))  # clocks of nodes differ
            self.seconds, self.rest = dict.fromkeys(PARTS, 0.0) | {"lost": lost_s}, "lost"

    def lap(self, part: str = "") -> None:
        """Gives the seconds since the last lap to a part, to `rest` by default."""
        now = self._clock()
        self.seconds[part or self.rest] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Gives the seconds of this block to a part."""
        self.lap()
        yield
        self.lap(name)

    def total(self) -> Goodput:
        """All attempts, including this one up to now."""
        self.lap()
        seconds = {part: before + self.seconds[part] for part, before in zip(PARTS, self.before, strict=False)}
        worker_s = self.before.worker_s + self.workers * sum(self.seconds.values())
        return Goodput(**seconds, steps=self.before.steps + self.steps, worker_s=worker_s, until=time.time())


def rows(points: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """(part, share, time) for each part of the metric points; none if there are none."""
    seconds = {part: points[f"wall/{part}_s"] for part in PARTS} if points else {}
    return [(ABOUT[part], f"{100 * each / sum(seconds.values()):.1f} %", duration(each)) for part, each in seconds.items()]


def summary(points: Mapping[str, float]) -> str:
    """The metric points in a line of text; empty if there are none."""
    if not points:
        return ""
    seconds = {part: points[f"wall/{part}_s"] for part in PARTS}
    total = sum(seconds.values())
    rest = [f"{part} {each / total:.0%}" for part, each in seconds.items() if part != "stepping" and each / total >= 0.005]
    words = [
        f"{percent(points['work/goodput'])} of {duration(total)} stepping" + (f" ({', '.join(rest)})" if rest else ""),
        f"{points['work/images_per_stepping_s']:.3g} images/s",
    ]
    if gflops := points.get("work/gflop_per_stepping_s"):
        words.append(f"{gflops:.3g} GFLOP/s")
    words.append(f"{points['work/worker_hours']:.3g} worker hours")
    if cost := points.get("work/cost"):
        words.append(f"cost {cost:.3g}")
    return ", ".join(words)
