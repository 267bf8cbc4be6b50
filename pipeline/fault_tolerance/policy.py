"""Decides whether a run restarts after its workers failed.

Ray Train counts all failures alike. So its own limit is off (`FailureConfig(max_failures=-1)`), and `RestartPolicy` decides in
its controller. An error raised there ends the run at once, because Ray Train does not retry what a callback raises.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ray.train import UserCallback

from pipeline.config.train import Faults
from pipeline.errors import RunFailed
from pipeline.fault_tolerance.failures import Fault, Kind, classify
from pipeline.formatting import hide_on_screen

logger = logging.getLogger(__name__)

RECORD_S = 10.0
"""Longest time that the controller waits until an event is recorded."""
AGAIN = "fix the cause and submit the run again: it resumes from its last checkpoint"


class RestartPolicy(UserCallback):
    """Decides in Ray Train's controller whether a run restarts after its workers failed; raises RunFailed if it does not.

    `record` receives {time (Unix seconds), kind, what, did} for each decision. It must pickle and may fail or hang; the
    controller waits RECORD_S seconds for it.
    """

    def __init__(self, faults: Faults, record: Callable[[dict[str, Any]], None]) -> None:
        self.faults, self.record = faults, record
        self.failures: list[str] = []
        """Infrastructure faults since the last checkpoint, with their times."""
        self.rollbacks = 0
        self.last = ""
        """Last infrastructure error raised as an exception since the last checkpoint."""
        self.judged: set[str] = set()
        """Tokens of the faults that were decided on."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """A checkpoint resets the count of failures in a row."""
        if checkpoint is not None:
            self.failures, self.last = [], ""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Makes one decision about the exceptions of all workers (rank -> exception)."""
        faults = {rank: classify(error) for rank, error in worker_exceptions.items()}
        tokens = {fault.token for fault in faults.values()}
        # While a node is preempted, Ray Train reports the same dead workers at every poll.
        if "" not in tokens and tokens <= self.judged:
            return
        if not self.judged:
            hide_on_screen("ray.train", "[FailurePolicy]")  # Ray's line has a traceback; ours says what was done
        self.judged |= tokens
        rank, fault = min(faults.items(), key=lambda item: (item[1].precedence, item[0]))
        others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        what = f"worker {rank}{others}: {fault}"
        ended, did = self._decide(fault, what)
        if not ended:  # otherwise the command's last line says it
            logger.warning("%s: %s", what, did)
        self._record({"time": time.time(), "kind": fault.kind.value, "what": what, "did": did})
        if ended:
            # Ray Train would log what is raised here three more times, with tracebacks of its own code.
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)
            listed = ["since the last checkpoint:", *self.failures] if self.failures else []
            raise RunFailed("\n".join([what, did, *listed]))

    def _decide(self, fault: Fault, what: str) -> tuple[bool, str]:
        """Returns (whether the run ends, what is done as a text)."""
        if fault.kind == Kind.DETERMINISTIC:
            return True, "not retried: it would repeat"
        if fault.kind == Kind.STOPPED:
            return True, "run the same command to resume from the newest checkpoint that is stored"
        if fault.kind == Kind.MOVED:
            return False, "resumes from the checkpoint on the remaining nodes; not counted as a failure"
        if fault.kind == Kind.MEMORY:
            return (False, "resumes in smaller passes") if fault.smaller else (True, "not retried: no smaller pass is possible")
        if fault.kind == Kind.NOT_FINITE:
            self.rollbacks += 1
            limit = self.faults.max_rollbacks
            if self.rollbacks > limit:
                return True, f"not retried: it went back to a checkpoint as often as faults.max_rollbacks = {limit} allows"
            return False, f"back to the last checkpoint, rollback {self.rollbacks} of {limit} (faults.max_rollbacks)"
        same = fault.raised and fault.what == self.last
        self.last = fault.what if fault.raised else ""
        if same:
            return True, f"not retried: the same as before, and no checkpoint in between, so it would repeat; {AGAIN}"
        self.failures.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {what}")
        number, limit = len(self.failures), self.faults.max_failures
        if number > limit:
            return True, (f"not retried: failure {number} in a row without a checkpoint, faults.max_failures = {limit}; {AGAIN}")
        return False, f"retried from the last checkpoint, failure {number} in a row of at most {limit} (faults.max_failures)"

    def _record(self, event: dict[str, Any]) -> None:
        def record() -> None:
            try:
                self.record(event)
            except Exception as error:  # the tracking server may be down too; the failure is in the log already
                logger.warning("the failure could not be recorded: %s: %s", type(error).__name__, error)

        thread = threading.Thread(target=record, daemon=True)
        thread.start()
        thread.join(RECORD_S)
        if thread.is_alive():
            logger.warning("the failure is not recorded yet after %g s", RECORD_S)
