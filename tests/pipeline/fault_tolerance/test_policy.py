"""Whether a run restarts after its workers failed: by kind, by budget; and what is recorded about each decision."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from ray.train import Checkpoint

from pipeline.config.train import Faults
from pipeline.errors import RunFailed, StorageError
from pipeline.fault_tolerance import policy
from pipeline.fault_tolerance.failures import NodePreempted, NotFinite, NotStored, OutOfMemory, RowsLost
from pipeline.fault_tolerance.policy import RestartPolicy
from tests.support.worker_faults import GLOO, died, sent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def restart_policy(**faults: Any) -> tuple[RestartPolicy, list[dict[str, Any]], Callable[..., None]]:
    """A restart policy, its records, and a call that gives it the exceptions of workers 0, 1, ... of one attempt."""
    events: list[dict[str, Any]] = []
    made = RestartPolicy(Faults(**faults), events.append)
    return made, events, lambda *errors: made.after_exception(None, dict(enumerate(errors)))


CHECKPOINT = Checkpoint("/somewhere")


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Restores the level that the end of a run sets."""
    yield
    logging.getLogger("ray.train").setLevel(logging.NOTSET)


def test_a_deterministic_error_ends_the_run_at_once_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    _, events, fail = restart_policy()
    with pytest.raises(RunFailed) as caught, caplog.at_level(logging.WARNING, "pipeline.fault_tolerance.policy"):
        fail(sent(ValueError("negative label")))
    assert str(caught.value).startswith("worker 0: ValueError: negative label  [support/worker_faults.py line ")
    assert str(caught.value).endswith(" in sent]\nnot retried: it would repeat")
    assert caplog.messages == [], "the command prints it, once"
    assert not logging.getLogger("ray.train.v2").isEnabledFor(logging.ERROR)
    (event,) = events
    assert set(event) == {"time", "kind", "what", "did"}
    assert event["kind"] == "deterministic"
    assert abs(event["time"] - time.time()) < 600


def test_a_run_that_was_to_stop_ends_with_what_is_not_stored_and_the_way_out() -> None:
    _, events, fail = restart_policy()
    with pytest.raises(RunFailed) as caught:
        fail(sent(NotStored("stopped on request; the checkpoint of step 40 is not stored")), GLOO)
    assert str(caught.value) == (
        "worker 0 (and 1 more): stopped on request; the checkpoint of step 40 is not stored\n"
        "run the same command to resume from the newest checkpoint that is stored"
    )
    assert events[0]["kind"] == "stopped"


@pytest.mark.parametrize(
    "collateral", [GLOO, died(), StorageError("s3://b: cannot be reached"), OutOfMemory("small", smaller=True)]
)
def test_of_workers_that_fail_together_the_deterministic_one_decides(collateral: Exception) -> None:
    _, _, fail = restart_policy()
    with pytest.raises(RunFailed, match=r"worker 1 \(and 1 more\): KeyError: 'image'"):
        fail(collateral, sent(KeyError("image")))


def test_a_death_is_named_before_the_connections_that_it_broke() -> None:
    _, events, fail = restart_policy()
    fail(GLOO, died(), GLOO)
    assert events[0]["what"].startswith("worker 1 (and 2 more): died (pid 4711, ip 10.0.0.2)")


def test_more_failures_in_a_row_than_allowed_end_the_run_and_all_are_listed() -> None:
    _, events, fail = restart_policy(max_failures=2)
    fail(died("a"))
    fail(sent(ConnectionError("reset")))
    with pytest.raises(RunFailed) as caught:
        fail(sent(GLOO))
    assert [event["did"] for event in events[:2]] == [
        f"retried from the last checkpoint, failure {n} in a row of at most 2 (faults.max_failures)" for n in (1, 2)
    ]
    what, did, title, *listed = str(caught.value).splitlines()
    assert what.startswith("worker 0: RuntimeError: [third_party/gloo")
    assert did.startswith("not retried: failure 3 in a row without a checkpoint, faults.max_failures = 2; fix")
    assert title == "since the last checkpoint:"
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in listed)
    words = ("died (pid 4711", "ConnectionError: reset", "RuntimeError: [third_party/gloo")
    assert all(line[19:].startswith(f"  worker 0: {word}") for line, word in zip(listed, words, strict=True))


def test_a_checkpoint_ends_the_row_and_a_report_without_one_does_not() -> None:
    made, events, fail = restart_policy(max_failures=1)
    for actor in "abc":
        fail(died(actor))
        made.after_report(None, [{}], CHECKPOINT)
    fail(died("d"))
    made.after_report(None, [{}], None)
    with pytest.raises(RunFailed, match="failure 2 in a row"):
        fail(died("e"))
    assert len(events) == 5


def test_the_same_error_of_code_twice_in_a_row_would_repeat_unless_a_checkpoint_or_another_failure_came_in_between() -> None:
    made, _, fail = restart_policy(max_failures=9)
    full = partial(OSError, 28, "No space left on device")
    fail(sent(full()))
    made.after_report(None, [{}], CHECKPOINT)
    fail(sent(full()))
    fail(died())
    fail(sent(full()))
    with pytest.raises(RunFailed, match="not retried: the same as before, and no checkpoint in between"):
        fail(sent(full()))


def test_lost_rows_are_retried_once_and_no_message_has_two_verdicts() -> None:
    _, events, fail = restart_policy()
    lost = RowsLost("data ended after step 7 of 9 on rank 0: rows were lost")
    fail(sent(lost))
    assert events[0]["did"].startswith("retried from the last checkpoint")
    with pytest.raises(RunFailed) as caught:
        fail(sent(lost))
    what, did, *_ = str(caught.value).splitlines()
    assert what.startswith("worker 0: data ended after step 7 of 9 on rank 0: rows were lost  [")
    assert did == (
        "not retried: the same as before, and no checkpoint in between, so it would repeat; fix the cause and submit the run "
        "again: it resumes from its last checkpoint"
    )


def test_deaths_and_broken_connections_of_the_same_words_are_accidents_each_time() -> None:
    _, events, fail = restart_policy(max_failures=9)
    for actor in "ab":
        fail(died(actor))
    for _ in range(3):
        fail(sent(GLOO))
    assert len(events) == 5


def test_a_run_goes_back_max_rollbacks_times_and_ends_with_the_diagnosis() -> None:
    made, events, fail = restart_policy(max_rollbacks=2, max_failures=0)
    for _ in range(2):
        fail(sent(NotFinite("the loss is nan since step 7")), sent(NotFinite("the loss is nan since step 7")))
        made.after_report(None, [{}], CHECKPOINT)
    with pytest.raises(RunFailed, match=r"step 7\nnot retried: it went back .* as faults.max_rollbacks = 2 allows"):
        fail(sent(NotFinite("the loss is nan since step 7")))
    assert events[1]["did"] == "back to the last checkpoint, rollback 2 of 2 (faults.max_rollbacks)"


def test_out_of_memory_resumes_in_smaller_passes_or_ends_the_run() -> None:
    _, events, fail = restart_policy(max_failures=0)
    for _ in range(3):
        fail(sent(OutOfMemory("4 images do not fit", smaller=True)), GLOO)
    assert [event["did"] for event in events] == ["resumes in smaller passes"] * 3
    with pytest.raises(RunFailed, match=r"one image does not fit: lower data.crop_size.*\nnot retried: no smaller pass"):
        fail(sent(OutOfMemory("one image does not fit: lower data.crop_size")))


def test_workers_that_moved_are_never_counted() -> None:
    _, events, fail = restart_policy(max_failures=0)
    for _ in range(5):
        fail(sent(NodePreempted("node 12ab is about to be taken away")), GLOO)
    assert {event["kind"] for event in events} == {"moved"}


def test_dead_workers_of_a_preempted_node_count_once_however_often_they_are_reported() -> None:
    _, events, fail = restart_policy(max_failures=0)
    for _ in range(5):
        fail(died("a", preempted=True))
    fail(died("b", preempted=True))
    assert [event["kind"] for event in events] == ["moved", "moved"]
    ended = sent(ConnectionError("reset"))
    _, events, fail = restart_policy(max_failures=1)
    for _ in range(3):
        fail(ended)
    assert len(events) == 1


def test_a_record_that_fails_or_hangs_holds_nothing_up(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(event: dict[str, Any]) -> None:
        raise ConnectionError("MLflow is down")

    RestartPolicy(Faults(), failing).after_exception(None, {0: died()})
    assert caplog.messages[-1] == "the failure could not be recorded: ConnectionError: MLflow is down"
    monkeypatch.setattr(policy, "RECORD_S", 0.1)
    answered = threading.Event()
    RestartPolicy(Faults(), lambda event: answered.wait(60) and None).after_exception(None, {0: died()})
    assert caplog.messages[-1] == "the failure is not recorded yet after 0.1 s"
    answered.set()
