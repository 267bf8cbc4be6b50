"""Settings of validation, jobs.evaluate, jobs.predict and jobs.export."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Address, Section, Sides


class Evaluate(Section):
    split: Literal["val", "test"] = "val"
    """Split for jobs.evaluate and jobs.predict; training always validates on `val`."""
    checkpoint: str | None = None
    """Checkpoint folder, delivered model, run key, MLflow run id, or `models:/NAME@ALIAS`; by default the best of this
    configuration's run."""
    other: str | None = None
    """Second checkpoint, in the same forms, which jobs.compare compares with `evaluate.checkpoint`."""
    recurrence: int | None = Field(None, ge=0, le=8, strict=True)
    """R to run the checkpoint with, if it must differ from the R of its training."""
    scale: float = Field(1.0, gt=0, le=16)
    """Image scale before the network; scores are resized to the label's resolution, at which IoU is counted."""
    window: Sides | None = None
    """Sliding window in pixels, one number or [height, width], each 8k + 1 (published: 769); null takes the whole image."""
    scales: tuple[Annotated[float, Field(gt=0, le=16)], ...] = Field((1.0,), min_length=1)
    """Scales, relative to `evaluate.scale`, whose scores are averaged."""
    flip: bool = False
    """Average the scores with those of the mirrored image."""
    attention_off: bool = True
    """Let jobs.evaluate also score the same weights with the attention off (R = 0), which nearly doubles its time."""
    panel_images: int = Field(4, ge=1)
    """Number of validation images that MLflow shows: always the same, which together show every class as large as they can."""
    background: bool = False
    """Validate in a separate Ray task while training continues; needs one more GPU, or the CPUs of one more worker."""


class Predict(Section):
    images: Address | None = None
    """Folder or `s3://` prefix of images; by default the validation split."""
    limit: int | None = Field(None, ge=1)
    """Predict only the first n images."""
    output: Address | None = None
    """Folder or `s3://` prefix for masks and overlays; by default `<storage.path>/predictions/<run key>`."""
    masks: Literal["ids", "palette", "cityscapes"] = "ids"
    """What masks hold: `ids`, the numbers of the classes from 0, grey; `palette`, the same with the class colours as palette, as
    PASCAL VOC's labels (viewers and OpenCV show colours, Pillow reads numbers); `cityscapes`, the label ids for its server."""
    overlay: bool = True
    """Write the image with the class colours over it too; must be false with `cityscapes`, which takes one PNG an image."""
    confidence: bool = False
    """Write `NAME_confidence.png` too, 8-bit grey: 255 times the probability of each pixel's class, which is the soft-max of the
    averaged scores; must be false with `cityscapes`."""


class Export(Section):
    output: Address | None = None
    """File or `s3://` address of the ONNX model; by default `<storage.path>/exports/<run key>-<result>.onnx`."""
    result: Literal["logits", "classes"] = "logits"
    """What the model returns: scores at stride 8, or the class of every pixel of the image."""
