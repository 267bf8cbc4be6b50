"""The errors whose message names the fix; a command prints such a message without a traceback.

PipelineError
    ConfigError        mistakes of a configuration
    StorageError       a bucket or a folder that cannot be used
    DataError
        SourceError    faults of the files of a source
        ShardError     a manifest, index or shard that is missing or damaged
        SampleError    a sample that is missing or damaged
    CheckpointError    a checkpoint that is missing or damaged
    ExportFailed       a model that was not delivered
    TrackingError      MLflow cannot be used
    RunFailed          the end of a run that is not started again
"""

from typing import Any

SHOWN = 20
"""Faults of a source that its message lists."""


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
    """A store that cannot be used: names the bucket or folder, and the key where there is one, what failed and the fix."""


class DataError(PipelineError):
    """A data set, or the source of one, that cannot be used."""


class SourceError(DataError):
    """Faults of a source: `.faults` holds one line each, the message the first 20, and what holds for all of them."""

    def __init__(self, faults: list[str], advice: str = "") -> None:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        super().__init__("\n".join([*faults[:SHOWN], *more, *([advice] if advice else [])]))
        self.faults, self.advice = faults, advice

    def __reduce__(self) -> Any:
        return type(self), (self.faults, self.advice)


class ShardError(DataError):
    """A manifest, index or shard that is missing, of another version or damaged: names the file and the fix."""


class SampleError(DataError):
    """A sample that is missing or damaged: names the object, the sample, what is wrong and the fix."""


class CheckpointError(PipelineError):
    """A checkpoint that is missing, torn or damaged; the message names the file."""


class ExportFailed(PipelineError):
    """A model that could not be exported, or whose export does not compute what torch does; nothing was written."""


class TrackingError(PipelineError):
    """MLflow cannot be used as configured; the message names the address and the fix."""


class RunFailed(PipelineError):
    """The end of a run: what failed, why it is not started again, and the fix."""
