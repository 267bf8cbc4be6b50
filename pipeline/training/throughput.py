"""The progress line of a run: speed, share of time spent waiting for data, time left."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from pipeline.fault_tolerance.goodput import Stopwatch

T = TypeVar("T")


class Throughput:
    """Counts steps, images and seconds since the last line; the time of validation and checkpoints does not count."""

    def __init__(self, steps: int, global_batch: int, watch: Stopwatch, busy: Callable[[], bool] = lambda: False) -> None:
        """`watch` gets the seconds of steps and data. `busy`: whether the device still computes; a CPU never does by itself."""
        self.steps, self.global_batch, self.watch, self.busy = steps, global_batch, watch, busy
        self._before = self._counted()

    def _counted(self) -> tuple[int, float, float]:
        return self.watch.steps, self.watch.seconds["stepping"], self.watch.seconds["waiting"]

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yields the batches, and counts the time to get each one and the time of its step."""
        self.watch.lap()
        self.watch.rest = "other"  # the attempt's start ends here
        while True:
            self.watch.lap()
            try:
                batch = next(batches)
            except StopIteration:
                return
            # A GPU is up to one step behind: while it computes that one, it does not wait for data.
            self.watch.lap("stepping" if self.busy() else "waiting")
            yield batch

    def step_done(self) -> None:
        """Ends the step's time; what follows until the next batch (validation, logging) does not count."""
        self.watch.lap("stepping")
        self.watch.steps += 1

    def flush(self, step: int) -> tuple[dict[str, float], str]:
        """Metric points since the last call, and the text `12.1 images/s  data wait 3 %  left 2:10`."""
        now = self._counted()
        num_steps, stepping, waited_s = (new - old for new, old in zip(now, self._before, strict=True))
        self._before = now
        seconds = max(stepping + waited_s, 1e-9)
        rate, waiting = num_steps * self.global_batch / seconds, waited_s / seconds
        left = round((self.steps - step) * self.global_batch / max(rate, 1e-9))
        clock = f"{left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d}" if left >= 3600 else f"{left // 60}:{left % 60:02d}"
        points = {"train/images_per_s": rate, "train/data_wait": waiting}
        return points, f"{rate:6.1f} images/s  data wait {waiting:4.0%}  left {clock}"
