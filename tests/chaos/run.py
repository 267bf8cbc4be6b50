"""A training in its own process: its log, line by line, and the recovery from a fault as read from the log."""

import re
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"step (\d+)/\d+  loss")
RESUMED = re.compile(r"resumed at step (\d+) from \S+ \(loaded in ([\d.]+) s\)")
FIRST_BATCH = re.compile(r"first batch after ([\d.]+) s")


class Line(NamedTuple):
    """A line of a run's log and its time, in seconds of the monotonic clock."""

    at: float
    text: str


class Run:
    """A running driver, such as `python -m jobs.train`, and its log."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.lines: list[Line] = []
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for text in output:
                with self._changed:
                    self.lines.append(Line(time.monotonic(), text.rstrip()))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(line.text for line in self.lines)

    def wait_for(self, pattern: str, *, after: float = 0.0, timeout_s: float = 240) -> Line:
        """The first line that matches and is later than `after`. Raises AssertionError with the log if there is none."""
        sought, deadline = re.compile(pattern), time.monotonic() + timeout_s
        seen = 0
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    if line.at > after and sought.search(line.text):
                        return line
                seen = len(self.lines)
                ended = not self._reader.is_alive()
                if ended or not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"no line like {pattern!r} within {timeout_s:g} s:\n{self.log[-6000:]}")

    def wait_for_step(self, step: int, **options: float) -> Line:
        return self.wait_for(rf"step {step}/\d+  loss", **options)

    def last_step(self, before: float) -> int:
        """The last step logged before that time; 0 if there is none."""
        return next((int(m[1]) for line in reversed(self.lines) if line.at <= before and (m := STEP.search(line.text))), 0)

    def kill(self) -> None:
        """Ends the driver by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def finish(self, timeout_s: float = 400) -> int:
        """Waits for the end. Returns the exit code."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s:\n{self.log[-6000:]}") from None
        self._reader.join(10)
        return code

    def succeed(self) -> None:
        """Waits for the end. Raises AssertionError with the log unless the exit code is 0."""
        assert self.finish() == 0, self.log[-6000:]


class Recovery(NamedTuple):
    """The time from a fault to the first step done after it, in seconds, and its parts."""

    total_s: float
    load_s: float
    first_batch_s: float
    step_before: int
    """Last step done before the fault."""
    resumed_at: int

    @property
    def start_s(self) -> float:
        """Time for noticing the fault, ending the old workers, starting new ones, and the first step."""
        return self.total_s - self.load_s - self.first_batch_s

    @property
    def steps_lost(self) -> int:
        """Steps that were done twice."""
        return max(0, self.step_before - self.resumed_at)


def recovery(before: Run, after: Run, fault_at: float, *, restarts: bool = True) -> Recovery:
    """Reads from the logs how a run recovered from a fault at that time; `after` is the run that continued, often the same one.

    If no worker restarts, only the time to the next step is measured.
    """
    last = before.last_step(fault_at)
    if not restarts:
        return Recovery(after.wait_for(STEP.pattern, after=fault_at).at - fault_at, 0.0, 0.0, last, last)
    batch = after.wait_for(FIRST_BATCH.pattern, after=fault_at)
    fed = FIRST_BATCH.search(batch.text)
    found = [m for line in after.lines if fault_at < line.at <= batch.at and (m := RESUMED.search(line.text))]
    step, load_s = (int(found[-1][1]), float(found[-1][2])) if found else (0, 0.0)
    assert fed
    done = after.wait_for_step(step + 1, after=batch.at - 1)
    return Recovery(done.at - fault_at, load_s, float(fed[1]), last, step)
