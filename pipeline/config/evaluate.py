"""Settings of validation, jobs.evaluate, jobs.predict and jobs.export."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Section, _absolute_url, check_aligned


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
