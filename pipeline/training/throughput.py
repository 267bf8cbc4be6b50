"""The progress line of a run: speed, share of time spent waiting for data, time left."""

import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Throughput:
    """Counts steps, images and seconds since the last line; the time of validation and checkpoints does not count."""

    def __init__(self, steps: int, global_batch: int) -> None:
        self.steps, self.global_batch = steps, global_batch
        self._window()

    def _window(self) -> None:
        self.num_steps, self.seconds, self.waited_s = 0, 0.0, 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yields the batches, and counts the time to get each one and the time of its step."""
        while True:
            start = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._arrived = time.monotonic()
            self.waited_s += self._arrived - start
            self.seconds += self._arrived - start
            yield batch

    def step_done(self) -> None:
        """Ends the step's time; what follows until the next batch (validation, logging) does not count."""
        self.num_steps += 1
        self.seconds += time.monotonic() - self._arrived

    def flush(self, step: int) -> tuple[dict[str, float], str]:
        """Metric points since the last call, and the text `12.1 images/s  data wait 3 %  left 2:10`."""
        rate = self.num_steps * self.global_batch / max(self.seconds, 1e-9)
        waiting = self.waited_s / max(self.seconds, 1e-9)
        left = round((self.steps - step) * self.global_batch / max(rate, 1e-9))
        self._window()
        clock = f"{left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d}" if left >= 3600 else f"{left // 60}:{left % 60:02d}"
        points = {"train/images_per_s": rate, "train/data_wait": waiting}
        return points, f"{rate:6.1f} images/s  data wait {waiting:4.0%}  left {clock}"
