"""Exceptions of workers as Ray Train passes them to its callbacks."""

import pickle

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from pipeline.fault_tolerance.failures import WorkerFault, as_worker_fault

DEATH = """The actor died unexpectedly before finishing this task.
	class_name: RayTrainWorker
	actor_id: {actor}
	pid: 4711
	ip: 10.0.0.2
The actor is dead because its worker process has died. Worker exit detail: Worker unexpectedly exits. Some common causes \
include: (1) the process was killed"""


def died(actor: str = "a1", *, preempted: bool = False) -> Exception:
    """Ray Train's error for a worker whose process has died."""
    death = RayActorError(actor, DEATH.format(actor=actor), preempted=preempted)
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=death)


def sent(error: Exception) -> Exception:
    """The exception as the controller receives it from a worker."""
    with pytest.raises(WorkerFault) as caught, as_worker_fault():
        raise error
    received: Exception = pickle.loads(pickle.dumps(caught.value))
    return received


def from_task(error: Exception) -> Exception:
    """The exception of a task as `ray.get` raises it."""
    return RayTaskError("f", "Traceback", error).as_instanceof_cause()


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


GLOO = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.1.1]:40321")
