"""Failures: what is tried again, what ends a run at once, and what is said about it."""

import logging
import pickle
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError, RayTaskError
from ray.train import Checkpoint, ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from pipeline import failures
from pipeline.checkpoint import CheckpointError
from pipeline.failures import Judge, Kind, MemoryShort, Moved, NotFinite, RunFailed, WorkerFault, cause, explained, fault_of
from pipeline.loading import ConfigError
from pipeline.plan import share
from pipeline.retries import Failed, draw_pause_s
from pipeline.samples import SampleError
from pipeline.storage import StorageError
from pipeline.train_settings import Faults

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

DEATH = """The actor died unexpectedly before finishing this task.
	class_name: RayTrainWorker
	actor_id: {actor}
	pid: 4711
	ip: 10.0.0.2
The actor is dead because its worker process has died. Worker exit detail: Worker unexpectedly exits. Some common causes \
include: (1) the process was killed"""


def died(actor: str = "a1", *, preempted: bool = False) -> Exception:
    """What Ray Train hands on for a worker whose process is gone."""
    death = RayActorError(actor, DEATH.format(actor=actor), preempted=preempted)
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=death)


def sent(error: Exception) -> Exception:
    """As a worker sends its exception to the controller."""
    with pytest.raises(WorkerFault) as caught, explained():
        raise error
    received: Exception = pickle.loads(pickle.dumps(caught.value))
    return received


def from_task(error: Exception) -> Exception:
    """As `ray.get` raises what a task has raised."""
    return RayTaskError("f", "Traceback", error).as_instanceof_cause()


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


def judge(**faults: Any) -> tuple[Judge, list[dict[str, Any]], Callable[..., None]]:
    """A judge, what it records, and a call that shows it the exceptions of workers 0, 1, ... of one attempt."""
    events: list[dict[str, Any]] = []
    made = Judge(Faults(**faults), events.append)
    return made, events, lambda *errors: made.after_exception(None, dict(enumerate(errors)))


CHECKPOINT = Checkpoint("/somewhere")
GLOO = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.1.1]:40321")

KINDS = [
    (ValueError("bad"), Kind.DETERMINISTIC),
    (TypeError("bad"), Kind.DETERMINISTIC),
    (KeyError("bad"), Kind.DETERMINISTIC),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), Kind.DETERMINISTIC),
    (RuntimeError("data order broken at step 3, rank 0"), Kind.DETERMINISTIC),
    (RuntimeError("CUDA error: device-side assert triggered"), Kind.DETERMINISTIC),
    (SampleError("a.png: corrupt"), Kind.DETERMINISTIC),
    (ConfigError(["seed = x: must be a number"]), Kind.DETERMINISTIC),
    (CheckpointError("step-000005: not whole"), Kind.DETERMINISTIC),
    (caused(SampleError("a.png: no such object"), by=FileNotFoundError("a.png")), Kind.DETERMINISTIC),
    (caused(RuntimeError("step 3 failed"), by=KeyError("image")), Kind.DETERMINISTIC),
    (ConnectionError("reset"), Kind.INFRASTRUCTURE),
    (TimeoutError("too slow"), Kind.INFRASTRUCTURE),
    (OSError(28, "No space left on device"), Kind.INFRASTRUCTURE),
    (StorageError("s3://b: does not recover"), Kind.INFRASTRUCTURE),
    (caused(RuntimeError("upload failed"), by=ConnectionError("reset")), Kind.INFRASTRUCTURE),
    (GLOO, Kind.INFRASTRUCTURE),
    (
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"),
        Kind.INFRASTRUCTURE,
    ),
    (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), Kind.INFRASTRUCTURE),
    (dist.DistStoreError("wait timeout after 300000ms"), Kind.INFRASTRUCTURE),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Kind.INFRASTRUCTURE),
    (ray.exceptions.ObjectLostError("00ff", None, ""), Kind.INFRASTRUCTURE),
    (ray.exceptions.OutOfMemoryError("the node's memory monitor killed the worker"), Kind.INFRASTRUCTURE),
    (torch.OutOfMemoryError("CUDA out of memory"), Kind.MEMORY),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."), Kind.MEMORY),
    (MemoryShort("too small"), Kind.MEMORY),
    (NotFinite("the loss is nan since step 7"), Kind.NOT_FINITE),
    (Moved("node 12ab is about to be taken away"), Kind.MOVED),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=[f"{kind.value}-{type(error).__name__}" for error, kind in KINDS])
def test_an_exception_is_told_apart_bare_as_sent_by_a_worker_and_out_of_a_task(error: Exception, kind: Kind) -> None:
    assert fault_of(error).kind == kind
    assert fault_of(sent(error)).kind == kind
    assert fault_of(sent(from_task(error))).kind == kind


def test_a_dead_or_silent_worker_is_infrastructure_and_one_of_a_node_taken_away_has_moved() -> None:
    assert fault_of(died())[:2] == (
        Kind.INFRASTRUCTURE,
        "died (pid 4711, ip 10.0.0.2): The actor is dead because its worker process has died. Worker exit detail: Worker "
        "unexpectedly exits.",
    )
    assert fault_of(died(preempted=True)).kind == Kind.MOVED
    assert fault_of(WorkerHealthCheckTimeoutError("hanging for 600 seconds")).kind == Kind.INFRASTRUCTURE
    unsent = from_task(TypeError("cannot pickle '_thread.lock' object"))
    assert fault_of(WorkerHealthCheckFailedError("A worker health check failed.", failure=unsent)).kind == Kind.DETERMINISTIC


def test_what_a_worker_sends_names_the_exception_its_cause_and_the_last_line_of_our_own() -> None:
    with pytest.raises(WorkerFault) as caught, explained():
        share(2, 0, 3)
    fault = pickle.loads(pickle.dumps(caught.value)).fault
    assert fault.what == "ValueError: train.global_batch = 2: fewer images than the 3 workers (lower train.workers)"
    line = next(n for n, text in enumerate(Path(share.__code__.co_filename).read_text().splitlines(), 1) if "lower train" in text)
    assert fault.where == f"pipeline/plan.py line {line} in share"
    with pytest.raises(WorkerFault, match=r"\[pipeline/retries.py line \d+ in draw_pause_s\]"), explained():
        draw_pause_s(1, lambda low, high: 1 / 0)
    wrapped = fault_of(sent(caused(RuntimeError("upload failed"), by=ConnectionError("reset"))))
    assert wrapped.what == "RuntimeError: upload failed (from ConnectionError: reset)"
    assert fault_of(sent(ValueError("x" * 1000))).what == f"ValueError: {'x' * 296} ..."


def test_an_exception_that_does_not_pickle_is_sent_all_the_same() -> None:
    failed = Failed(0, 3, 1.5, final=False)
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(failed))
    assert fault_of(sent(failed)).what == "Failed: tried 3 times in 1.5 s"


def test_our_own_exceptions_pickle() -> None:
    for error in (NotFinite("nan"), Moved("node"), RunFailed("over"), MemoryShort("small", smaller=True)):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)


def test_a_deterministic_error_ends_the_run_at_once_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    _, events, fail = judge()
    with pytest.raises(RunFailed) as caught, caplog.at_level(logging.WARNING, "pipeline.failures"):
        fail(sent(ValueError("negative label")))
    assert str(caught.value).startswith("worker 0: ValueError: negative label  [pipeline/test_failures.py line ")
    assert str(caught.value).endswith(" in sent]\nnot retried: it would repeat")
    assert [message.split("  [")[0] for message in caplog.messages] == ["worker 0: ValueError: negative label"]
    assert caplog.messages[0].endswith("]: not retried: it would repeat")
    (event,) = events
    assert set(event) == {"time", "kind", "what", "did"}
    assert event["kind"] == "deterministic"
    assert abs(event["time"] - time.time()) < 600


@pytest.mark.parametrize(
    "collateral", [GLOO, died(), StorageError("s3://b: cannot be reached"), MemoryShort("small", smaller=True)]
)
def test_of_workers_that_fail_together_the_deterministic_one_decides(collateral: Exception) -> None:
    _, _, fail = judge()
    with pytest.raises(RunFailed, match=r"worker 1 \(and 1 more\): KeyError: 'image'"):
        fail(collateral, sent(KeyError("image")))


def test_a_death_is_named_before_the_connections_that_it_broke() -> None:
    _, events, fail = judge()
    fail(GLOO, died(), GLOO)
    assert events[0]["what"].startswith("worker 1 (and 2 more): died (pid 4711, ip 10.0.0.2)")


def test_more_failures_in_a_row_than_allowed_end_the_run_and_all_are_listed() -> None:
    _, events, fail = judge(max_failures=2)
    fail(died("a"))
    fail(sent(ConnectionError("reset")))
    with pytest.raises(RunFailed) as caught:
        fail(sent(GLOO))
    assert [event["did"] for event in events[:2]] == [
        f"retried from the last checkpoint, failure {n} in a row of at most 2 (faults.max_failures)" for n in (1, 2)
    ]
    what, did, title, *listed = str(caught.value).splitlines()
    assert what.startswith("worker 0: RuntimeError: [third_party/gloo")
    assert did.startswith("not retried: failure 3 in a row without a checkpoint, faults.max_failures = 2; mend")
    assert title == "since the last checkpoint:"
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in listed)
    words = ("died (pid 4711", "ConnectionError: reset", "RuntimeError: [third_party/gloo")
    assert all(line[19:].startswith(f"  worker 0: {word}") for line, word in zip(listed, words, strict=True))


def test_a_checkpoint_ends_the_row_and_a_report_without_one_does_not() -> None:
    made, events, fail = judge(max_failures=1)
    for actor in "abc":
        fail(died(actor))
        made.after_report(None, [{}], CHECKPOINT)
    fail(died("d"))
    made.after_report(None, [{}], None)
    with pytest.raises(RunFailed, match="failure 2 in a row"):
        fail(died("e"))
    assert len(events) == 5


def test_the_same_error_of_code_twice_in_a_row_would_repeat_unless_a_checkpoint_or_another_failure_came_in_between() -> None:
    made, _, fail = judge(max_failures=9)
    full = partial(OSError, 28, "No space left on device")
    fail(sent(full()))
    made.after_report(None, [{}], CHECKPOINT)
    fail(sent(full()))
    fail(died())
    fail(sent(full()))
    with pytest.raises(RunFailed, match="not retried: the same as before, and no checkpoint in between"):
        fail(sent(full()))


def test_deaths_and_broken_connections_of_the_same_words_are_accidents_each_time() -> None:
    _, events, fail = judge(max_failures=9)
    for actor in "ab":
        fail(died(actor))
    for _ in range(3):
        fail(sent(GLOO))
    assert len(events) == 5


def test_a_run_goes_back_so_many_times_and_ends_with_the_diagnosis() -> None:
    made, events, fail = judge(max_rollbacks=2, max_failures=0)
    for _ in range(2):
        fail(sent(NotFinite("the loss is nan since step 7")), sent(NotFinite("the loss is nan since step 7")))
        made.after_report(None, [{}], CHECKPOINT)
    with pytest.raises(RunFailed, match=r"step 7\nnot retried: it went back .* as faults.max_rollbacks = 2 allows"):
        fail(sent(NotFinite("the loss is nan since step 7")))
    assert events[1]["did"] == "back to the last checkpoint, time 2 of 2 (faults.max_rollbacks)"


def test_short_memory_goes_on_in_smaller_passes_or_ends_the_run() -> None:
    _, events, fail = judge(max_failures=0)
    for _ in range(3):
        fail(sent(MemoryShort("4 images do not fit", smaller=True)), GLOO)
    assert [event["did"] for event in events] == ["goes on in smaller passes"] * 3
    with pytest.raises(RunFailed, match=r"one image does not fit: lower data.crop_size.*\nnot retried: no smaller pass"):
        fail(sent(MemoryShort("one image does not fit: lower data.crop_size")))


def test_workers_that_moved_are_never_counted() -> None:
    _, events, fail = judge(max_failures=0)
    for _ in range(5):
        fail(sent(Moved("node 12ab is about to be taken away")), GLOO)
    assert {event["kind"] for event in events} == {"moved"}


def test_the_dead_of_a_node_taken_away_are_judged_once_however_often_they_are_shown() -> None:
    _, events, fail = judge(max_failures=0)
    for _ in range(5):
        fail(died("a", preempted=True))
    fail(died("b", preempted=True))
    assert [event["kind"] for event in events] == ["moved", "moved"]
    ended = sent(ConnectionError("reset"))
    _, events, fail = judge(max_failures=1)
    for _ in range(3):
        fail(ended)
    assert len(events) == 1


def test_a_record_that_fails_or_hangs_holds_nothing_up(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(event: dict[str, Any]) -> None:
        raise ConnectionError("MLflow is down")

    Judge(Faults(), failing).after_exception(None, {0: died()})
    assert caplog.messages[-1] == "the failure could not be recorded: ConnectionError: MLflow is down"
    monkeypatch.setattr(failures, "RECORD_S", 0.1)
    answered = threading.Event()
    Judge(Faults(), lambda event: answered.wait(60) and None).after_exception(None, {0: died()})
    assert caplog.messages[-1] == "the failure is not recorded yet after 0.1 s"
    answered.set()


def test_the_cause_is_found_under_what_ray_train_wraps_around_it() -> None:
    over, storage = RunFailed("over"), StorageError("s3://b: access refused")
    assert cause(ControllerError(over)) is over
    assert cause(ControllerError(from_task(storage))) is storage  # type: ignore[arg-type]
    assert cause(WorkerGroupError("", {0: storage})) is storage
    assert cause(storage) is storage


def test_the_end_of_a_run_stays_the_end_whatever_its_words() -> None:
    over = ControllerError(RunFailed(f"worker 0: {GLOO}\nnot retried"))
    assert fault_of(over).kind == Kind.DETERMINISTIC
    assert fault_of(ControllerError(RayActorError("a", "died"))).kind == Kind.INFRASTRUCTURE
