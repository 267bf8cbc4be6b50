"""The sections of a configuration: each setting typed, frozen, with its legal values and what it means."""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

OUTPUT_STRIDE = 8
JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in a submitted job, whose folder is a temporary copy


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _absolute_url(value: str) -> str:
    if "://" in value:
        return value.rstrip("/")
    path = Path(value).expanduser()
    if not path.is_absolute() and os.environ.get(JOB_MARK):
        raise ValueError("a relative folder of a submitted job is lost with the job (try s3://bucket/prefix or an absolute path)")
    return str(path.absolute())


def check_aligned(value: int | tuple[int, int]) -> int | tuple[int, int]:
    for side in (value,) if isinstance(value, int) else value:
        if side < 2 * OUTPUT_STRIDE + 1 or side % OUTPUT_STRIDE != 1:
            low = max(2 * OUTPUT_STRIDE + 1, (side - 1) // OUTPUT_STRIDE * OUTPUT_STRIDE + 1)
            raise ValueError(f"must be 8k + 1 and at least 17 (try {low} or {low + OUTPUT_STRIDE})")
    return value


class Storage(Section):
    path: str
    """Where shards, checkpoints and predictions live: `s3://bucket/prefix` or a folder."""
    endpoint: str | None = None
    """URL of an S3-compatible store; by default the environment's AWS_ENDPOINT_URL, else AWS S3."""

    patience_s: float = Field(120, gt=0)
    """Seconds for which a failing request is tried again, with growing random pauses, before it is an error."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return _absolute_url(value)


class Model(Section):
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet101"
    """Dilated deep-stem ResNet, output stride 8."""
    recurrence: int = Field(ge=0, le=8, strict=True)
    """R, passes of the criss-cross attention; the paper uses 2, and 0 trains without attention."""
    init: Literal["kaiming", "published"] = "kaiming"
    """Random start of the backbone; `published` keeps PyTorch's default, which fades without an ImageNet backbone."""
    zero_init_residual: bool = False
    """Start residual blocks as the identity; for training from random weights."""
    variant: Literal["official", "mmseg"] = "official"
    """Whose network: the published one, or mmsegmentation's, which their checkpoints need."""
    stem: Literal["deep", "slim", "plain"] | None = None
    """First layers of the backbone; by default the variant's own. torchvision's weights need `plain`."""
    weights: str | None = None
    """Checkpoint to start from, a file or `s3://` address; classifiers for another number of classes start anew."""
    weights_format: Literal["official", "mmseg", "torchvision", "ccnet"] = "official"
    """Where it comes from: CCNet's own repository, mmsegmentation, torchvision (a backbone), or this project."""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value and _absolute_url(value)


class Ohem(Section):
    thresh: float = Field(0.7, gt=0, le=1)
    """Pixels predicted right with more than this probability are left out (published: 0.7 in the README, 0.6 in its script)."""
    min_kept: int = Field(100_000, ge=0)
    """Pixels of the global batch kept at least; published: 100,000 (script: 200,000) per GPU of two images."""
    factor: int = Field(8, ge=1)
    """The threshold is found on every so many-th row and column; 1 looks at every pixel."""


class Consistency(Section):
    weight: float = Field(1.0, gt=0)
    """Weight of the category-consistent loss beside cross-entropy."""
    channels: int = Field(16, ge=1)
    """Width to which a 1x1 convolution reduces the features (TPAMI paper: 16)."""
    layer: Literal["rcca_output", "rcca_input"] = "rcca_output"
    """Features it works on: after the attention, or before."""


class Loss(Section):
    aux_weight: float = Field(0.4, ge=0)
    """Weight of the auxiliary head's cross-entropy (published: 0.4)."""
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weight of each class in the cross-entropy of both heads."""
    ohem: Ohem | None = None
    """Hard-pixel cross-entropy for the main head; `{}` takes 0.7 and 100,000."""
    consistency: Consistency | None = None
    """Category-consistent loss of the TPAMI paper; `{}` takes its values."""
    dice_weight: float = Field(0.0, ge=0)
    """Weight of a Dice loss beside cross-entropy."""
    lovasz_weight: float = Field(0.0, ge=0)
    """Weight of a Lovasz-softmax loss beside cross-entropy."""

    @field_validator("class_weights")
    @classmethod
    def _some_weight(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not any(value):
            raise ValueError("must have a weight above 0 (try null, which weighs all alike)")
        return value


class Evaluate(Section):
    split: Literal["val", "test"] = "val"
    """Split that jobs.evaluate scores and jobs.predict shows; training always validates on `val`."""
    checkpoint: str | None = None
    """Checkpoint folder, MLflow run id, or `models:/NAME@ALIAS`; by default the best of this configuration's run."""
    recurrence: int | None = Field(None, ge=0, le=8, strict=True)
    """R to run the checkpoint at, when it is meant to differ from the R it was trained with."""
    scale: float = Field(1.0, gt=0)
    """Image scale before the network; scores are resized to the label's own resolution, where IoU is counted."""
    window: int | tuple[int, int] | None = None
    """Sliding window in pixels, one number or [height, width], each 8k + 1 (published: 769); none looks at the whole image."""
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), min_length=1)
    """Scales, relative to `evaluate.scale`, whose scores are averaged."""
    flip: bool = False
    """Average with the scores of the mirrored image."""
    panel_images: int = Field(4, ge=1)
    """Fixed validation images shown in MLflow."""
    apart: bool = False
    """Validate beside training in a Ray task of its own, on a GPU where training has GPUs; the workers go on at once."""

    @field_validator("window")
    @classmethod
    def _aligned(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        return None if value is None else check_aligned(value)


class Predict(Section):
    images: str | None = None
    """Folder or `s3://` prefix of images; by default the validation split."""
    limit: int | None = Field(None, ge=1)
    """Predict only the first so many images."""
    output: str | None = None
    """Where masks and overlays go; by default `<storage.path>/predictions/<run key>`."""

    @field_validator("images", "output")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value and _absolute_url(value)


class Export(Section):
    output: str | None = None
    """File or `s3://` address of the ONNX model; by default `<storage.path>/exports/<run key>-<result>.onnx`."""
    result: Literal["logits", "classes"] = "logits"
    """What the model returns: scores at stride 8, or the class of every pixel of the image."""

    @field_validator("output")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value and _absolute_url(value)


class Tracking(Section):
    uri: str | None = None
    """MLflow tracking server; by default MLFLOW_TRACKING_URI, else the file mlflow.db in this folder."""
    experiment: str = "ccnet"
    """MLflow experiment."""
    register_as: str | None = None
    """Name in the model registry for the best checkpoint; none leaves it out."""


class Dimension(Section):
    log: tuple[float, float] | None = None
    """Log-uniform range [low, high]."""
    choice: tuple[Any, ...] | None = None
    """Values to choose from."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.log is None) == (self.choice is None):
            raise ValueError("needs exactly one of log: [low, high] and choice: [a, b, ...]")
        if self.log and not 0 < self.log[0] < self.log[1]:
            raise ValueError(f"log = {list(self.log)}: needs 0 < low < high")
        if self.choice is not None and not self.choice:
            raise ValueError("choice = []: needs at least one value")
        return self

    def examples(self) -> tuple[Any, ...]:
        """All choices, or the ends and the middle of the range: what the setting must accept."""
        return self.choice if self.choice else (*(self.log or ()), math.sqrt(math.prod(self.log or (1,))))


class Tune(Section):
    space: dict[str, Dimension] = {}
    """Search space: dotted setting -> {log: [low, high]} or {choice: [...]}."""
    trials: int = Field(4, ge=1)
    """Trials in all."""
    concurrent: int | None = Field(None, ge=1)
    """Trials at a time; by default what the cluster's CPUs and GPUs hold."""
    grace_steps: int = Field(100, ge=1)
    """Steps before ASHA may stop a trial."""
    reduction: int = Field(2, ge=2)
    """ASHA keeps one in so many trials at each rung."""


class Pictures(Section):
    """Pictures made for a measurement, of the compressibility of photographs."""

    height: int = Field(ge=33)
    """Height in pixels."""
    width: int = Field(ge=33)
    """Width in pixels."""
    format: Literal["png", "jpeg"]
    """How they are encoded; JPEG of quality 95."""
    crop_size: int | tuple[int, int]
    """Training crop in pixels, one number or [height, width], each 8k + 1."""
    images: int = Field(256, ge=1)
    """Images of each stage in each round."""

    @field_validator("crop_size")
    @classmethod
    def _aligned(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        return check_aligned(value)


class Benchmark(Section):
    of: tuple[Literal["images", "operator", "network", "launchers"], ...] = ("images",)
    """What is measured: an image's way from the storage to the batch; the criss-cross operator beside others; the training step
    beside the published one; Ray Train beside torchrun."""
    rounds: int = Field(3, ge=1)
    """Rounds, each stage once in each; what is reported are medians over them."""
    images: int = Field(256, ge=1)
    """Images of each stage in each round."""
    cores: int | None = Field(None, ge=1)
    """Processes of each stage; by default the cores that this process may use."""
    made: tuple[Pictures, ...] = ()
    """Data sets to make and to measure instead of the configuration's own."""
    stores: tuple[str, ...] = ()
    """Measure on each of these folders or `s3://bucket/prefix` instead of storage.path alone."""
    step: bool = True
    """Measure the training step as well."""
    maps: tuple[tuple[int, int, int, int], ...] = ((1, 512, 97, 97), (2, 512, 64, 128))
    """Batch, channels, height and width of the maps for the operator: crops of 769 x 769 and of 512 x 1024 at stride 8."""
    steps: int = Field(10, ge=1)
    """Training steps of each round, of the network and of each launcher."""

    @field_validator("stores")
    @classmethod
    def _absolute(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_absolute_url, value))
