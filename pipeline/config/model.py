"""Settings of the network, its start and its loss."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Address, Section


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
    weights: Address | None = None
    """Checkpoint to start from, a file or `s3://` address; classifiers for another number of classes start anew."""
    weights_format: Literal["official", "mmseg", "torchvision", "ccnet"] = "official"
    """Where it comes from: CCNet's own repository, mmsegmentation, torchvision (a backbone), or this project."""


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
