"""The errors whose message names the fix; a command prints such a message without a traceback.

PipelineError
    ConfigError        mistakes of a configuration
    StorageError       a bucket or a folder that cannot be used
        DiskError      a full or failing disk of this machine
    LeaseError         a folder that another process writes
    DataError
        SourceError    faulty files of a source
        ShardError     a manifest, index or shard that is missing or damaged
        SampleError    a sample that is missing or damaged
    CheckpointError    a checkpoint that is missing or damaged
    ModelError         a model folder that is missing or damaged
    ExportFailed       an exported model that was not delivered
    TaskDied           a Ray task whose process or node died
    TrackingError      an MLflow server or database that cannot be used
    ClusterError       a Ray cluster that cannot be joined
    RunFailed          a run that ended and is not restarted
"""

import re
from collections.abc import Sequence
from typing import Any

SHOWN = 20
"""Number of a source's faults that the message lists."""
OF_ONE_FILE = re.compile(r"\S*[/.]\w\S*|\d+ (x \d+|pixels|bytes)")
"""Names and sizes in a sentence about a file."""
FEW, SHOWN_NAMES = 5, 5
"""Files that share a fault, from which on one line stands for all; names in that line."""


class PipelineError(Exception):
    """Something that the user can fix; the message says how."""


class ConfigError(PipelineError):
    """All mistakes of a configuration; `.mistakes` holds one line each."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes

    def __reduce__(self) -> Any:
        return type(self), (self.mistakes,)


class StorageError(PipelineError):
    """A store that cannot be used. The message names the bucket or folder, the key if there is one, what failed and the fix."""


class DiskError(StorageError):
    """A disk of this machine that is full or fails. The message names the folder, what was needed, what is free and the fix."""


class LeaseError(PipelineError):
    """A folder that another process writes; the message names that process and the fix."""


class DataError(PipelineError):
    """A data set, or the source of one, that cannot be used."""


class SourceError(DataError):
    """Faults of a source. `.faults` holds one line each; the message has the first 20, of those that many files have one, and
    the advice that holds for all."""

    def __init__(self, faults: list[str], advice: str = "") -> None:
        lines = grouped(faults)
        more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        super().__init__("\n".join([*lines[:SHOWN], *more, *([advice] if advice else [])]))
        self.faults, self.advice = faults, advice

    def __reduce__(self) -> Any:
        return type(self), (self.faults, self.advice)


class ShardError(DataError):
    """A manifest, index or shard that is missing, damaged or of another version. The message names the file and the fix."""


class SampleError(DataError):
    """A sample that is missing or damaged. The message names the object, the sample, what is wrong and the fix."""


class CheckpointError(PipelineError):
    """A checkpoint that is missing, incomplete or damaged; the message names the file."""


class ModelError(PipelineError):
    """No model at an address, or one that cannot be loaded."""


class ExportFailed(PipelineError):
    """A model that could not be exported, or whose exported file gives other results than torch; nothing was written."""


class TaskDied(PipelineError):
    """A Ray task that ended without a result or an exception: its process was killed or its node was lost."""


class TrackingError(PipelineError):
    """MLflow cannot be used as configured; the message names the address and the fix."""


class ClusterError(PipelineError):
    """The Ray cluster of RAY_ADDRESS cannot be joined; the message names the address and the fix."""


class RunFailed(PipelineError):
    """The end of a run. The message has what failed, why the run is not restarted, and the fix."""


def grouped(faults: Sequence[str]) -> list[str]:
    """The faults `FILE: fault`; of several that differ in files and sizes alone, the first, with the others' names."""
    groups: dict[str, list[str]] = {}
    for fault in faults:
        groups.setdefault(OF_ONE_FILE.sub("", fault.partition(": ")[2] or fault), []).append(fault)
    lines = []
    for first, *others in groups.values():
        names = [fault.partition(": ")[0].rpartition("/")[2] for fault in others]
        if len(others) + 1 < FEW:
            lines += [first, *others]
        else:
            more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
            lines.append(f"{first} ({len(others):,} more files have it: {', '.join(names[:SHOWN_NAMES])}{more})")
    return lines
