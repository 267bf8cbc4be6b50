"""Failures: which are retried, which end a run at once, and how each is described."""

import pickle
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from pipeline.errors import CheckpointError, ConfigError, RunFailed, SampleError, StorageError
from pipeline.fault_tolerance.failures import (
    Kind,
    NodePreempted,
    NotFinite,
    OutOfMemory,
    RowsLost,
    WorkerFault,
    as_worker_fault,
    classify,
    root_cause,
)
from pipeline.loading.sampler import share
from pipeline.storage.retry import Failed, draw_pause_s
from tests.support.worker_faults import GLOO, caused, died, from_task, sent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

KINDS = [
    (ValueError("bad"), Kind.DETERMINISTIC),
    (TypeError("bad"), Kind.DETERMINISTIC),
    (KeyError("bad"), Kind.DETERMINISTIC),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), Kind.DETERMINISTIC),
    (RowsLost("data order broken at step 3, rank 0"), Kind.INFRASTRUCTURE),
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
    (torch.OutOfMemoryError("CUDA out of memory"), Kind.INFRASTRUCTURE),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."), Kind.INFRASTRUCTURE),
    (OutOfMemory("too small"), Kind.MEMORY),
    (NotFinite("the loss is nan since step 7"), Kind.NOT_FINITE),
    (NodePreempted("node 12ab is about to be taken away"), Kind.MOVED),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=[f"{kind.value}-{type(error).__name__}" for error, kind in KINDS])
def test_an_exception_is_classified_bare_as_sent_by_a_worker_and_out_of_a_task(error: Exception, kind: Kind) -> None:
    assert classify(error).kind == kind
    assert classify(sent(error)).kind == kind
    assert classify(sent(from_task(error))).kind == kind


def test_a_dead_or_silent_worker_is_infrastructure_and_one_of_a_node_taken_away_has_moved() -> None:
    assert classify(died())[:2] == (
        Kind.INFRASTRUCTURE,
        "died (pid 4711, ip 10.0.0.2): The actor is dead because its worker process has died. Worker exit detail: Worker "
        "unexpectedly exits.",
    )
    assert classify(died(preempted=True)).kind == Kind.MOVED
    assert classify(WorkerHealthCheckTimeoutError("hanging for 600 seconds")).kind == Kind.INFRASTRUCTURE
    unsent = from_task(TypeError("cannot pickle '_thread.lock' object"))
    assert classify(WorkerHealthCheckFailedError("A worker health check failed.", failure=unsent)).kind == Kind.DETERMINISTIC


def test_what_a_worker_sends_names_the_exception_its_cause_and_the_last_line_of_our_own() -> None:
    with pytest.raises(WorkerFault) as caught, as_worker_fault():
        share(2, 0, 3)
    fault = pickle.loads(pickle.dumps(caught.value)).fault
    assert fault.what == "ValueError: train.global_batch = 2: fewer images than the 3 workers (lower train.workers)"
    line = next(n for n, text in enumerate(Path(share.__code__.co_filename).read_text().splitlines(), 1) if "lower train" in text)
    assert fault.where == f"pipeline/loading/sampler.py line {line} in share"
    with pytest.raises(WorkerFault, match=r"\[pipeline/storage/retry.py line \d+ in draw_pause_s\]"), as_worker_fault():
        draw_pause_s(1, lambda low, high: 1 / 0)
    wrapped = classify(sent(caused(RuntimeError("upload failed"), by=ConnectionError("reset"))))
    assert wrapped.what == "RuntimeError: upload failed (from ConnectionError: reset)"
    assert classify(sent(ValueError("x" * 1000))).what == f"ValueError: {'x' * 296} ..."


def test_an_exception_that_does_not_pickle_is_sent_all_the_same() -> None:
    failed = Failed(0, 3, 1.5, final=False)
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(failed))
    assert classify(sent(failed)).what == "Failed: tried 3 times in 1.5 s"


def test_our_own_exceptions_pickle() -> None:
    for error in (NotFinite("nan"), NodePreempted("node"), RunFailed("over"), OutOfMemory("small", smaller=True)):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)


def test_the_cause_is_found_under_what_ray_train_wraps_around_it() -> None:
    over, storage = RunFailed("over"), StorageError("s3://b: access refused")
    assert root_cause(ControllerError(over)) is over
    assert root_cause(ControllerError(from_task(storage))) is storage  # type: ignore[arg-type]
    assert root_cause(WorkerGroupError("", {0: storage})) is storage
    assert root_cause(storage) is storage


def test_the_end_of_a_run_stays_the_end_whatever_its_words() -> None:
    for words in (GLOO, "DefaultCPUAllocator: can't allocate memory", "CUDA error: uncorrectable ECC error"):
        assert classify(ControllerError(RunFailed(f"worker 0: {words}\nnot retried"))).kind == Kind.DETERMINISTIC
    assert classify(ControllerError(RayActorError("a", "died"))).kind == Kind.INFRASTRUCTURE
