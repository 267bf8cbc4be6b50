"""What a worker's exception means: a fault outside, one that would only repeat, or one with an answer of its own.

On their way to Ray Train's controller exceptions lose causes and tracebacks, so a worker sums them up before (`as_worker_fault`).
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

from pipeline.errors import RunFailed

WORDS = 300
"""Characters of an exception's words that are shown."""

# Ray's and Python's ways of passing on an exception that something else has raised.
_WRAPPERS = {"RayTaskError", "UserCodeException", "UserExceptionWithTraceback", "WorkerHealthCheckFailedError",
             "TrainingFailedError"}  # fmt: skip
# By name, botocore's and torch's among them: neither is needed here.
_OUTSIDE = {"OSError", "StorageError", "RayError", "ConnectionError", "TimeoutError", "HTTPClientError",
            "WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError"}  # fmt: skip
_PEERS = {"DistError", "CollectiveTimeoutError"}
# gloo raises plain RuntimeErrors.
_PEER_WORDS = re.compile(r"(?i)gloo|nccl|connection (closed|reset|refused|aborted)|broken pipe|timed out|socket (closed|timeout)")
_HARDWARE_WORDS = re.compile(r"(?i)uncorrectable ECC|uncorrectable NVLink|busy or unavailable|fallen off the bus")
_OURS = re.compile(r"(ccnet|pipeline)\.(?!fault_tolerance\.failures$)")
_RAISED_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Short)): (.*)$", re.MULTILINE)


class NotFinite(RuntimeError):
    """No finite loss and gradient for too many steps in a row; the text is the diagnosis."""


class OutOfMemory(RuntimeError):
    """The device's memory is too small for a pass; `smaller`: the next attempt takes smaller ones."""

    def __init__(self, what: str, smaller: bool = False) -> None:
        super().__init__(what)
        self.smaller = smaller


class NodePreempted(RuntimeError):
    """The workers left off on purpose, after a checkpoint, because a node is about to be taken away."""


class Kind(StrEnum):
    """Of workers that fail together the first of these decides: the others' errors follow from it."""

    DETERMINISTIC = "deterministic"
    MEMORY = "memory"
    NOT_FINITE = "not finite"
    MOVED = "moved"
    INFRASTRUCTURE = "infrastructure"


class Fault(NamedTuple):
    """What one worker failed with."""

    kind: Kind
    what: str
    """One line, such as `ValueError: its words`."""
    where: str = ""
    """The last line of our own code that ran."""
    token: str = ""
    """Told apart by this from another failure of the same words; empty when unknown."""
    collateral: bool = False
    """The connection to a peer broke, which follows from what happened to the peer."""
    raised: bool = False
    """Raised by code as an exception of its own: one that comes again is no accident."""
    smaller: bool = False
    """The next attempt takes less memory."""

    def __str__(self) -> str:
        # The other kinds' words say all, and each of them comes from one place.
        placed = self.where and self.kind in (Kind.DETERMINISTIC, Kind.INFRASTRUCTURE)
        return f"{self.what}  [{self.where}]" if placed else self.what

    @property
    def precedence(self) -> tuple[int, bool, bool]:
        return list(Kind).index(self.kind), self.collateral, self.raised


_OWN = {RunFailed: Kind.DETERMINISTIC, NotFinite: Kind.NOT_FINITE, NodePreempted: Kind.MOVED}


class WorkerFault(RuntimeError):
    """A worker's exception in a form that travels."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


@contextmanager
def as_worker_fault() -> Iterator[None]:
    """Around all that a worker runs: raises WorkerFault in place of an exception, told apart where its causes are still known."""
    try:
        yield
    except WorkerFault:
        raise
    except Exception as error:
        raise WorkerFault(classify(error)._replace(where=_where(error), token=uuid.uuid4().hex)) from error


def classify(error: BaseException) -> Fault:
    """What an exception means, by the outermost one in its chain of causes that tells."""
    chain = _chain(error)
    for link in chain:
        names, words = _names(link), str(link)
        if names & _WRAPPERS:  # its words are those of what it wraps
            continue
        if isinstance(link, WorkerFault):
            return link.fault
        if kind := next((_OWN[own] for own in _OWN if isinstance(link, own)), None):
            return Fault(kind, words)
        if isinstance(link, OutOfMemory):
            return Fault(Kind.MEMORY, _brief(words), smaller=link.smaller)
        if is_out_of_memory(link):  # outside a step, where no smaller pass helps; the dead workers' memory may not be free yet
            return Fault(Kind.INFRASTRUCTURE, _reporting_progress(chain, link), raised=True)
        if isinstance(link, RayActorError):
            return Fault(Kind.MOVED if link.preempted else Kind.INFRASTRUCTURE, _death(words), token=link.actor_id or "")
        if found := _infrastructure(names, words):
            return found._replace(what=_reporting_progress(chain, link))
        if type(link) not in (RuntimeError, Exception) or link is chain[-1]:
            return Fault(Kind.DETERMINISTIC, _reporting_progress(chain, link))
    return _from_text("\n".join(str(link) for link in chain))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no memory for a tensor: on CUDA an exception of its own, on CPUs a RuntimeError told by its words."""
    names = _names(error)
    return ("OutOfMemoryError" in names and "RayError" not in names) or "DefaultCPUAllocator: " in str(error)


def root_cause(error: BaseException) -> BaseException:
    """The error of ours in what `fit()` raises: RunFailed, or the first one under Ray's wrapping; else the error itself."""
    return next((link for link in _chain(error) if not _names(link) & _WRAPPERS), error)


def _chain(error: BaseException) -> list[BaseException]:
    """The exception, what it wraps and what it was raised from, the outermost first."""
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


def _infrastructure(names: set[str], words: str) -> Fault | None:
    """A fault outside of our code by an exception's kinds and words; None when it is not known as one."""
    peer = bool(names & _PEERS or ("RuntimeError" in names and _PEER_WORDS.search(words)))
    if peer or "WorkerHealthCheckTimeoutError" in names:
        return Fault(Kind.INFRASTRUCTURE, words, collateral=peer)
    if names & _OUTSIDE or ("RuntimeError" in names and _HARDWARE_WORDS.search(words)):
        return Fault(Kind.INFRASTRUCTURE, words, raised=True)
    return None


def _from_text(text: str) -> Fault:
    """By the traceback that Ray Data sends for a failed task, in which the exception itself is not left."""
    lines = [(name, words) for name, words in _RAISED_LINE.findall(text) if name not in _WRAPPERS]
    if not lines:
        return Fault(Kind.DETERMINISTIC, _brief(text))
    name, words = lines[-1]
    names = {name} | {kind.__name__ for kind in getattr(getattr(builtins, name, None), "__mro__", ())}
    what = f"{name}: {_brief(words)}"
    found = _infrastructure(names, words)
    return found._replace(what=what) if found else Fault(Kind.DETERMINISTIC, what)


def _reporting_progress(chain: list[BaseException], decisive: BaseException) -> str:
    """The outermost exception's words, and those of the one behind it that decides."""
    first = next(link for link in chain if not _names(link) & _WRAPPERS)
    told = f"{type(first).__name__}: {_brief(str(first))}"
    return told if first is decisive else f"{told} (from {type(decisive).__name__}: {_brief(str(decisive))})"


def _death(words: str) -> str:
    """`died (pid 17, ip 10.0.0.2): why` of Ray's many lines."""
    place = ", ".join(f"{name} {found[1]}" for name in ("pid", "ip") if (found := re.search(rf"\t{name}: (\S+)", words)))
    reason = words.splitlines()[-1].split(" Some common causes include")[0] if words else "no reason given"
    return f"died ({place}): {_brief(reason)}" if place else f"died: {_brief(reason)}"


def _where(error: BaseException) -> str:
    """`pipeline/model/learner.py line 71 in step`: the last line of our own packages in the traceback, else its last line."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [place for place in frames if _OURS.match(place[0].f_globals.get("__name__", ""))]
    frame, line = (own or frames)[-1]
    code = frame.f_code
    # Of our own files the path below the repository: as many parts as the module's name has.
    parts = frame.f_globals["__name__"].count(".") + 1 if own else 2
    file = Path(*Path(code.co_filename).parts[-parts:])
    return f"{file} line {line} in {code.co_name}"


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WORDS else f"{line[: WORDS - 4]} ..."
