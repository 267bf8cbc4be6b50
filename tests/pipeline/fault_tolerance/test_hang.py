"""The hang detector: reports the stacks of a process that hangs, then ends it; leaves every other process alone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pipeline.fault_tolerance import hang
from pipeline.fault_tolerance.hang import EXIT_CODE, HangDetector

ROOT = Path(__file__).parents[3]


@contextmanager
def process(role: Callable[..., None], *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Runs a function of this file in a separate process, which is killed at the end."""
    code = f"from tests.pipeline.fault_tolerance import test_hang; test_hang.{role.__name__}(*{[str(a) for a in arguments]!r})"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.communicate(timeout=60)


def ended(running: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, standard error)."""
    _, errors = running.communicate(timeout=120)
    return running.returncode, errors


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write(file: Path, text: str) -> None:
    file.write_text(text)


def idles(event: threading.Event) -> None:
    event.wait()


def waits_for_ever(folder: str) -> None:
    hang.LINGER_S = 0.2
    threading.Thread(target=idles, args=(threading.Event(),), name="idler", daemon=True).start()
    lock = threading.Lock()
    with lock, HangDetector(0.5, partial(write, Path(folder, "stacks"))) as detector:
        detector.progress()
        lock.acquire()


def test_a_process_that_hangs_in_a_lock_reports_all_stacks_but_the_detectors_and_ends(tmp_path: Path) -> None:
    with process(waits_for_ever, tmp_path) as running:
        code, errors = ended(running)
    assert code == EXIT_CODE, errors
    head, first, *rest = (tmp_path / "stacks").read_text().splitlines()
    assert head.startswith("no progress for ")
    assert head.endswith(f" s: worker 0 of 1, host {socket.gethostname()}, pid {running.pid}")
    assert first == "the training thread MainThread:"
    stacks = "\n".join(rest)
    training, other = stacks.split("thread idler:\n")
    assert "in waits_for_ever\n    lock.acquire()" in training
    assert "in idles\n    event.wait()" in other
    assert "in _stacks" not in stacks


def steps_until_enough(folder: str) -> None:
    """Slow at first, then steps of 0.3 s; ends when the file `enough` exists, or fails after a minute."""
    with HangDetector(1.0, partial(write, Path(folder, "stacks"))) as detector:
        time.sleep(1.5)
        for step in range(200):
            detector.progress()
            Path(folder, "steps").write_text(str(step))
            if Path(folder, "enough").exists():
                return
            for _ in range(10):  # one long sleep would be over at once when the process resumes
                time.sleep(0.03)
    raise AssertionError("the file `enough` was not written")


@pytest.mark.slow
def test_a_slow_first_step_and_a_process_that_was_stopped_are_no_hang(tmp_path: Path) -> None:
    with process(steps_until_enough, tmp_path) as running:
        steps = tmp_path / "steps"
        wait_for(steps.exists)
        time.sleep(0.1)  # in the middle of a step
        running.send_signal(signal.SIGSTOP)
        time.sleep(2)
        before = int(steps.read_text())
        running.send_signal(signal.SIGCONT)
        wait_for(lambda: int(steps.read_text() or 0) >= before + 2 or running.poll() is not None)
        (tmp_path / "enough").touch()
        code, errors = ended(running)
    assert (code, errors) == (0, "")
    assert not (tmp_path / "stacks").exists()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which this process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(hang, "LINGER_S", 0.2)
    return codes


def test_a_pause_does_not_count_and_what_follows_it_does(ends: list[int]) -> None:
    reports: list[str] = []
    with HangDetector(0.5, reports.append) as detector:
        with detector.paused():  # before the first step: does not start the count
            pass
        time.sleep(0.8)
        detector.progress()
        with detector.paused(), detector.paused():
            time.sleep(0.8)
        assert ends == []
        wait_for(lambda: bool(ends))
    assert ends == [EXIT_CODE]
    assert len(reports) == 1


def test_the_process_ends_though_the_stacks_cannot_be_reported(ends: list[int], caplog: pytest.LogCaptureFixture) -> None:
    def failing(text: str) -> None:
        raise ConnectionError("MLflow is down")

    with HangDetector(0.2, failing) as detector:
        detector.progress()
        wait_for(lambda: bool(ends))
    assert caplog.messages == ["the stacks could not be reported"]
    answered = threading.Event()
    with HangDetector(0.2, lambda text: answered.wait(60) and None) as detector:
        detector.progress()
        wait_for(lambda: len(ends) == 2)
    answered.set()


def test_no_thread_is_left_behind(ends: list[int]) -> None:
    before = set(threading.enumerate())
    with HangDetector(60.0, print) as detector:
        detector.progress()
    with pytest.raises(KeyError), HangDetector(60.0, print):
        raise KeyError("image")
    assert set(threading.enumerate()) - before == set()
    assert ends == []
