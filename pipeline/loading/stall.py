"""Logs why no batch came: on a paid cluster a feed must not wait silently."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import ray

from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.errors import SampleError
from pipeline.loading.samples import open_samples

T = TypeVar("T")
logger = logging.getLogger(__name__)

PROBE_S = 5.0
"""Patience with the storage while the reason is searched, in seconds."""


class StallMonitor:
    """Passes batches on. When none has come for `seconds`, logs the result of `reason`, and repeats this every `seconds`."""

    def __init__(self, seconds: float, reason: Callable[[], str]) -> None:
        self.seconds, self.reason = seconds, reason
        self.due: float | None = None
        self.changed = threading.Condition()
        self.closed = False

    def watched(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches; the time that the caller spends on one does not count."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            while True:
                self._expect(True)
                batch = next(batches, None)
                self._expect(False)
                if batch is None:
                    return
                yield batch
        finally:
            with self.changed:
                self.closed = True
                self.changed.notify()
            thread.join()

    def _expect(self, waiting: bool) -> None:
        with self.changed:
            self.since = time.monotonic()
            self.due = self.since + self.seconds if waiting else None
            self.changed.notify()

    def _watch(self) -> None:
        with self.changed:
            while not self.closed:
                left = None if self.due is None else self.due - time.monotonic()
                if left is None or left > 0:
                    self.changed.wait(left)
                    continue
                waited, self.due = time.monotonic() - self.since, time.monotonic() + self.seconds
                self.changed.release()  # finding the reason may take a while; a batch that comes meanwhile must not wait for it
                try:
                    found = self.reason()
                except Exception as error:  # logged, because what stops the feed may also stop the search for the reason
                    found = f"the reason cannot be found: {type(error).__name__}: {error}"
                logger.warning("no batch for %.0f s: %s", waited, found)
                self.changed.acquire()


def stall_reason(config: Config, manifest: Manifest) -> str:
    """State of storage and cluster that may explain why the feed waits, with the fix."""
    return "; ".join([_storage_state(config, manifest), _cluster_state(config)])


def _storage_state(config: Config, manifest: Manifest) -> str:
    hurried = config.model_copy(update={"storage": config.storage.model_copy(update={"patience_s": PROBE_S})})
    started = time.monotonic()
    try:
        open_samples(hurried, manifest, "train").read([0])
    except SampleError as error:
        return f"the storage answers, but {error}"
    except Exception as error:  # any error of this read explains the stall
        return f"the storage does not answer: {error}"
    return f"the storage answers in {time.monotonic() - started:.1f} s"


def _cluster_state(config: Config) -> str:
    free, total = (resources.get("CPU", 0.0) for resources in (ray.available_resources(), ray.cluster_resources()))
    if free < config.data.cpus_per_task:
        return (
            f"{free:g} of {total:g} CPUs are free: either Ray Data's tasks run but are slower than training, or something "
            f"else holds the CPUs (lower train.cpus_per_worker, data.cpus_per_task or the crop, or add CPUs)"
        )
    return f"{free:g} of {total:g} CPUs are free: Ray Data is not held up by CPUs; its log is in /tmp/ray/session_latest/logs"
