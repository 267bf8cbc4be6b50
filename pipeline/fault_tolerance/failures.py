"""Classifies a worker's exception: a restart helps, the same error would repeat, or the case has its own treatment.

Exceptions lose their causes and tracebacks on the way to Ray Train's controller, so the worker classifies them before it sends
them (`as_worker_fault`).
"""

import builtins
import re
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from ray.exceptions import RayActorError

from pipeline.errors import PipelineError, RunFailed
from pipeline.storage import disk

MESSAGE_CHARS = 300
"""Characters of an exception's message that are shown."""

# Exceptions that only wrap another one.
_WRAPPERS = {"RayTaskError", "UserCodeException", "UserExceptionWithTraceback", "WorkerHealthCheckFailedError",
             "TrainingFailedError"}  # fmt: skip
# Matched by class name, so that this file imports neither botocore nor torch.
_OUTSIDE = {"OSError", "StorageError", "RayError", "ConnectionError", "TimeoutError", "HTTPClientError",
            "WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError"}  # fmt: skip
_PEERS = {"DistError", "CollectiveTimeoutError"}
# gloo raises plain RuntimeErrors, so only the message identifies them.
_PEER_MESSAGE = re.compile(
    r"(?i)gloo|nccl|connection (closed|reset|refused|aborted)|broken pipe|timed out|socket (closed|timeout)"
)
_HARDWARE_MESSAGE = re.compile(r"(?i)uncorrectable ECC|uncorrectable NVLink|busy or unavailable|fallen off the bus")
# This file is excluded: a frame of `as_worker_fault` is in every traceback.
_OURS = re.compile(r"(ccnet|pipeline)\.(?!fault_tolerance\.failures$)")
_RAISED_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Short)): (.*)$", re.MULTILINE)


class NotFinite(RuntimeError):
    """Too many steps in a row had no finite loss and gradient; the message is the diagnosis."""


class RowsLost(RuntimeError):
    """Ray Data delivered other rows than the sampler's; that is not known to repeat, so the workers restart."""


class OutOfMemory(PipelineError):
    """A pass or an image does not fit into the device's memory; `smaller`: the next attempt takes smaller passes."""

    def __init__(self, what: str, smaller: bool = False) -> None:
        super().__init__(what)
        self.smaller = smaller


class NodePreempted(RuntimeError):
    """The workers stopped on purpose, after a checkpoint if there was time, because a node is about to be preempted."""


class NotStored(RuntimeError):
    """A stop was requested, and the state of the run could not be stored in time."""


class Kind(StrEnum):
    """In order of priority: if several workers fail at once, the first kind in this list is the cause and the rest are
    consequences."""

    DETERMINISTIC = "deterministic"
    STOPPED = "stopped"
    MEMORY = "memory"
    NOT_FINITE = "not finite"
    MOVED = "moved"
    INFRASTRUCTURE = "infrastructure"


class Fault(NamedTuple):
    """The failure of one worker."""

    kind: Kind
    what: str
    """One line, such as `ValueError: message`."""
    where: str = ""
    """The last line of this project's code that ran."""
    token: str = ""
    """Unique id of this failure, so the same message raised twice counts twice; empty if unknown."""
    collateral: bool = False
    """The connection to another worker broke, as a consequence of what happened to that worker."""
    raised: bool = False
    """Code raised it as an exception, unlike a death or a broken connection: the same one twice in a row is no accident."""
    smaller: bool = False
    """The next attempt takes smaller passes."""

    def __str__(self) -> str:
        # Each of the other kinds is raised at one place, so the line would add nothing to its message.
        placed = self.where and self.kind in (Kind.DETERMINISTIC, Kind.INFRASTRUCTURE)
        return f"{self.what}  [{self.where}]" if placed else self.what

    @property
    def precedence(self) -> tuple[int, bool, bool]:
        """Sort key: of several workers' faults the smallest is the cause."""
        return list(Kind).index(self.kind), self.collateral, self.raised


_OWN = {RunFailed: Kind.DETERMINISTIC, NotStored: Kind.STOPPED, NotFinite: Kind.NOT_FINITE, NodePreempted: Kind.MOVED,
        RowsLost: Kind.INFRASTRUCTURE}  # fmt: skip


class WorkerFault(RuntimeError):
    """A worker's exception in a form that survives pickling."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


@contextmanager
def as_worker_fault() -> Iterator[None]:
    """Wraps all that a worker runs: turns an exception into a WorkerFault while its causes are still known."""
    try:
        yield
    except WorkerFault:
        raise
    except Exception as error:
        raise WorkerFault(classify(error)._replace(where=_where(error), token=uuid.uuid4().hex)) from error


def classify(error: BaseException) -> Fault:
    """The fault that an exception means, decided by the outermost one in its chain of causes whose kind is known."""
    chain = _chain(error)
    for link in chain:
        names, message = _names(link), str(link)
        if names & _WRAPPERS:  # its message repeats the wrapped exception's
            continue
        if isinstance(link, WorkerFault):
            return link.fault
        if kind := next((_OWN[own] for own in _OWN if isinstance(link, own)), None):
            return Fault(kind, message, raised=kind == Kind.INFRASTRUCTURE)
        if isinstance(link, OutOfMemory):
            return Fault(Kind.MEMORY, _brief(message), smaller=link.smaller)
        # Out of memory outside a step: smaller passes do not help, but the memory of dead workers may not be free yet.
        if is_out_of_memory(link):
            return Fault(Kind.INFRASTRUCTURE, _with_cause(chain, link), raised=True)
        if isinstance(link, RayActorError):
            return Fault(Kind.MOVED if link.preempted else Kind.INFRASTRUCTURE, _death(message), token=link.actor_id or "")
        if fault_of_disk := disk.sentence(link):
            return Fault(Kind.INFRASTRUCTURE, f"{type(link).__name__}: {fault_of_disk}", raised=True)
        if found := _infrastructure(names, message):
            return found._replace(what=_with_cause(chain, link))
        # A plain RuntimeError or Exception may only report what failed below it: then its cause decides.
        if type(link) not in (RuntimeError, Exception) or link is chain[-1]:
            return Fault(Kind.DETERMINISTIC, _with_cause(chain, link))
    return _from_text("\n".join(str(link) for link in chain))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no memory for a tensor: on CUDA its own exception, on CPUs a RuntimeError known by its message."""
    names = _names(error)
    return ("OutOfMemoryError" in names and "RayError" not in names) or "DefaultCPUAllocator: " in str(error)


def root_cause(error: BaseException) -> BaseException:
    """The error that Ray's exceptions wrap in what `fit()` raises, such as RunFailed; the error itself if there is none."""
    return next((link for link in _chain(error) if not _names(link) & _WRAPPERS), error)


def _chain(error: BaseException) -> list[BaseException]:
    """The exception, then what it wraps or was raised from, outermost first."""
    chain: list[BaseException] = []
    link: Any = error
    while isinstance(link, BaseException) and link not in chain:
        chain.append(link)
        inner = [getattr(link, name, None) for name in ("cause", "controller_failure", "health_check_failure", "_base_exc")]
        inner += list(getattr(link, "worker_failures", {}).values())
        link = next((found for found in inner if isinstance(found, BaseException)), link.__cause__)
    return chain


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _infrastructure(names: set[str], message: str) -> Fault | None:
    """The infrastructure fault that an exception's class names and message mean; None if they mean none."""
    peer = bool(names & _PEERS or ("RuntimeError" in names and _PEER_MESSAGE.search(message)))
    if peer or "WorkerHealthCheckTimeoutError" in names:
        return Fault(Kind.INFRASTRUCTURE, message, collateral=peer)
    if names & _OUTSIDE or ("RuntimeError" in names and _HARDWARE_MESSAGE.search(message)):
        return Fault(Kind.INFRASTRUCTURE, message, raised=True)
    return None


def _from_text(text: str) -> Fault:
    """The fault of a failed task of Ray Data, which sends the text of the traceback without the exception itself."""
    lines = [(name, message) for name, message in _RAISED_LINE.findall(text) if name not in _WRAPPERS]
    if not lines:
        return Fault(Kind.DETERMINISTIC, _brief(text))
    name, message = lines[-1]
    names = {name} | {kind.__name__ for kind in getattr(getattr(builtins, name, None), "__mro__", ())}
    what = f"{name}: {_brief(message)}"
    found = _infrastructure(names, message)
    return found._replace(what=what) if found else Fault(Kind.DETERMINISTIC, what)


def _with_cause(chain: list[BaseException], decisive: BaseException) -> str:
    """The outermost exception's message, and that of the cause that decided the kind."""
    first = next(link for link in chain if not _names(link) & _WRAPPERS)
    text = f"{type(first).__name__}: {_brief(str(first))}"
    return text if first is decisive else f"{text} (from {type(decisive).__name__}: {_brief(str(decisive))})"


def _death(message: str) -> str:
    """`died (pid 17, ip 10.0.0.2): reason`, from Ray's message of many lines."""
    place = ", ".join(f"{name} {found[1]}" for name in ("pid", "ip") if (found := re.search(rf"\t{name}: (\S+)", message)))
    reason = message.splitlines()[-1].split(" Some common causes include")[0] if message else "no reason given"
    return f"died ({place}): {_brief(reason)}" if place else f"died: {_brief(reason)}"


def _where(error: BaseException) -> str:
    """`pipeline/model/learner.py line 71 in step`: the traceback's last line in this project's code, else its last line."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [place for place in frames if _OURS.match(place[0].f_globals.get("__name__", ""))]
    frame, line = (own or frames)[-1]
    code = frame.f_code
    # A file of this project is shown by its path below the repository, which has as many parts as the module's name.
    parts = frame.f_globals["__name__"].count(".") + 1 if own else 2
    file = Path(*Path(code.co_filename).parts[-parts:])
    return f"{file} line {line} in {code.co_name}"


def _brief(text: str) -> str:
    """The text in one line of at most MESSAGE_CHARS characters."""
    line = " ".join(text.split())
    return line if len(line) <= MESSAGE_CHARS else f"{line[: MESSAGE_CHARS - 4]} ..."
