"""The base class and the shared types of all sections, and the two sections that every command needs: storage and tracking."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

OUTPUT_STRIDE = 8
JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in a submitted job, whose folder is a temporary copy


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _absolute_url(value: str) -> str:
    if "://" in value:
        return value.rstrip("/")
    path = Path(value).expanduser()
    if not path.is_absolute() and os.environ.get(JOB_MARK):
        raise ValueError("a relative folder of a submitted job is lost with the job (try s3://bucket/prefix or an absolute path)")
    return str(path.absolute())


def _check_aligned(value: tuple[int, int]) -> tuple[int, int]:
    for side in value:
        if side < 2 * OUTPUT_STRIDE + 1 or side % OUTPUT_STRIDE != 1:
            low = max(2 * OUTPUT_STRIDE + 1, (side - 1) // OUTPUT_STRIDE * OUTPUT_STRIDE + 1)
            raise ValueError(f"must be 8k + 1 and at least 17 (try {low} or {low + OUTPUT_STRIDE})")
    return value


Address = Annotated[str, AfterValidator(_absolute_url)]
"""`s3://bucket/prefix`, or a folder or file, which becomes an absolute path."""
Sides = Annotated[
    tuple[int, int],
    BeforeValidator(lambda value: (value, value) if isinstance(value, int) else value),
    AfterValidator(_check_aligned),
]
"""(height, width) in pixels, each 8k + 1, so that features and pixels align; one number means both."""


class Storage(Section):
    path: Address
    """Where shards, checkpoints and predictions are stored: `s3://bucket/prefix` or a folder."""
    endpoint: str | None = None
    """URL of an S3-compatible store; by default the environment's AWS_ENDPOINT_URL, else AWS S3."""

    patience_s: float = Field(120, gt=0)
    """Seconds during which a failed request is retried, with growing random pauses, before it is an error."""


class Tracking(Section):
    uri: str | None = None
    """MLflow tracking server; by default MLFLOW_TRACKING_URI, else the file mlflow.db in the current folder."""
    experiment: str = "ccnet"
    """MLflow experiment."""
    register_as: str | None = None
    """Name in the model registry for the best checkpoint; null registers none."""
