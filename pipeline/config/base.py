"""The base class and the shared types of all sections, and the two sections that every command needs: storage and tracking."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from pipeline.formatting import name_fault

OUTPUT_STRIDE = 8
NAME = "[a-z0-9][a-z0-9_-]*"
LONGEST_NAME = 256
"""Characters of an experiment's or a registered model's name: what MLflow's databases hold."""
JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in a submitted job, whose folder is a temporary copy


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _counts(cls, value: Any, info: ValidationInfo) -> Any:
        """A truth value is no number, and no count has more than 15 digits: 64 bits must hold what is computed from it."""
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, bool) for each in values):
            types = set(_types(cls.model_fields[str(info.field_name)].annotation))
            if types & {int, float} and not types & {bool, Any}:
                raise ValueError("must be a number")
        if isinstance(value, int) and abs(value) >= 10**15:
            raise ValueError("is too large: has more than 15 digits")
        return value


def _types(annotation: Any) -> Iterator[Any]:
    """The types of which an annotation is made, such as int and None of `tuple[int, ...] | None`."""
    parts = get_args(annotation)
    yield from chain.from_iterable(map(_types, parts)) if parts else (annotation,)


def has_scheme(address: str) -> bool:
    """Whether an address begins with a scheme such as `s3://`; a folder may have `://` in its name."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", address) is not None


def absolute(value: str) -> str:
    """The address: a folder as an absolute path, a bucket's prefix as it is written.

    Raises ValueError for an address that is blank, is of another kind, or has a part `.` or `..` in a bucket, where no folder
    has these names.
    """
    if not value.strip():
        raise ValueError("is empty (try a folder or s3://bucket/prefix, or null where the setting has a default)")
    scheme, _, rest = value.partition(":")
    if not value.startswith("s3://") and (has_scheme(value) or scheme.lower() == "s3"):
        near = {"s3": f"s3://{rest.lstrip('/')}", "file": rest.removeprefix("//").removeprefix("localhost")}.get(scheme.lower())
        raise ValueError(f"must be s3://BUCKET/PREFIX or a folder (try {near or 's3://BUCKET/PREFIX'})")
    if "\0" in value:
        raise ValueError("has a null character, which no address can have (try it without)")
    if not has_scheme(value):
        return str(Path(os.path.expanduser(value)).absolute())
    rest = value.removeprefix("s3://")
    if rest[:1] in ("", "/"):
        raise ValueError("has no bucket (try s3://BUCKET/PREFIX)")
    if {".", ".."} & set(rest.split("/")):
        raise ValueError("has a part `.` or `..`, which a bucket does not resolve (try the address without it)")
    return value


def address_of(value: str) -> str:
    """The address: a folder or file as an absolute path. Raises ValueError for one that is lost with a submitted job."""
    if value and not has_scheme(value) and not os.path.isabs(os.path.expanduser(value)) and os.environ.get(JOB_MARK):
        raise ValueError("a relative folder of a submitted job is lost with the job (try s3://bucket/prefix or an absolute path)")
    return absolute(value)


def _without_empty_parts(value: str) -> str:
    if not has_scheme(value):
        return value
    scheme, _, rest = value.removesuffix("/").partition("://")
    if "" in rest.split("/"):  # Ray Train would fold `//` and write to another prefix than we do
        raise ValueError(f"has an empty part (try {scheme}://{'/'.join(filter(None, rest.split('/')))})")
    return f"{scheme}://{rest}"


def _in_writing(value: str) -> str:
    if odd := sorted({each for each in value if unicodedata.category(each) in ("Cc", "Cs")}):
        raise ValueError(f"has a character that listings of buckets cannot hold, {odd[0]!r} (try an address without it)")
    return value


def _plain(value: str) -> str:
    if not re.fullmatch(NAME, value):
        fix = re.sub(r"[^a-z0-9_-]+", "-", value.lower()).strip("-_") or "mine"
        raise ValueError(f"becomes a folder and a part of run keys: use a-z, 0-9, - and _ only (try {fix})")
    return value


def _check_aligned(value: tuple[int, int]) -> tuple[int, int]:
    for side in value:
        if side < 2 * OUTPUT_STRIDE or side % OUTPUT_STRIDE > 1:
            raise ValueError(misaligned(side))
    return value


def misaligned(side: int) -> str:
    """What is wrong with a side that is not 8k + 1, and the nearest ones that are."""
    low = max(2 * OUTPUT_STRIDE + 1, (side - 1) // OUTPUT_STRIDE * OUTPUT_STRIDE + 1)
    return f"must be 8k + 1 and at least 17 (try {low} or {low + OUTPUT_STRIDE})"


Address = Annotated[str, AfterValidator(address_of)]
"""`s3://bucket/prefix`, or a folder or file, which becomes an absolute path."""
Root = Annotated[Address, AfterValidator(_without_empty_parts), AfterValidator(_in_writing)]
"""An address below which this project makes folders of its own; without a slash at the end."""
Name = Annotated[str, AfterValidator(_plain), WithJsonSchema({"type": "string", "pattern": f"^{NAME}$"})]
"""Lower-case letters, digits, `-` and `_`."""
Sides = Annotated[
    tuple[int, int],
    BeforeValidator(
        lambda value: (value, value) if isinstance(value, int) else value, json_schema_input_type=int | tuple[int, int]
    ),
    AfterValidator(_check_aligned),
]
"""(height, width) in pixels, each 8k + 1, so that features and pixels align; one number means both. `Config` allows 8k as well,
for a network of mmsegmentation that does not align corners."""


class Bucket(Section):
    endpoint: str | None = None
    """URL of the bucket's store; by default storage.endpoint."""
    profile: str | None = None
    """Profile of ~/.aws/config with the bucket's credentials and region; by default those of the environment."""
    anonymous: bool = False
    """Send no credentials: for a public bucket."""
    requester_pays: bool = False
    """Agree to pay for the requests: for a bucket whose readers pay."""
    addressing: Literal["path", "virtual"] | None = None
    """Name the bucket in the path or in the host name of URLs; by default the path if there is an endpoint, else AWS's choice."""


class Storage(Section):
    path: Root
    """Where shards, checkpoints and predictions are stored: `s3://bucket/prefix` or a folder."""
    endpoint: str | None = None
    """URL of an S3-compatible store; by default the environment's AWS_ENDPOINT_URL, else AWS S3."""
    buckets: dict[str, Bucket] = Field({})
    """Bucket, or `bucket/prefix` -> how it is accessed, if not like the others: another store, public, paid by readers."""
    patience_s: float = Field(120, gt=0)
    """Seconds during which a failed request is retried, with growing random pauses, before it is an error."""

    def bucket(self, url: str) -> Bucket:
        """How an `s3://` address is accessed: the longest entry of `buckets` that the address lies in."""
        path = url.removeprefix("s3://")
        known = {name.removeprefix("s3://").removesuffix("/"): bucket for name, bucket in self.buckets.items()}
        holding = [name for name in known if path == name or path.startswith(f"{name}/")]
        return known[max(holding, key=len)] if holding else Bucket()


def _listed(value: str) -> str:
    if fault := name_fault(value, LONGEST_NAME):
        raise ValueError(fault)
    return value


def _model_name(value: str) -> str:
    if "/" in value or ":" in value or posixpath.normpath(value) != value or value in (".", "..") or value.startswith(".."):
        raise ValueError(
            "must have no `/` and no `:` and not begin with `..`, which MLflow refuses in a model's name (try a-b for a/b)"
        )
    return value


class Tracking(Section):
    uri: str | None = None
    """MLflow tracking server; by default MLFLOW_TRACKING_URI, else the file mlflow.db in the current folder."""
    experiment: Annotated[str, AfterValidator(_listed)] = "ccnet"
    """MLflow experiment."""
    register_as: Annotated[str, AfterValidator(_listed), AfterValidator(_model_name)] | None = None
    """Name in the model registry for the best checkpoint; null registers none."""
    log_model: bool = True
    """Whether MLflow stores a copy of the best model, which `mlflow.pyfunc` loads and `mlflow models serve` serves."""
