"""Settings of the network, its first weights and its loss."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config.base import Section, address_of

WEIGHTS_BY_NAME: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "imagenet": (
        ("resnet18", "resnet34", "resnet50", "resnet101"),
        {"stem": "plain", "weights_format": "torchvision"},
    ),
    "cityscapes": (
        ("resnet50", "resnet101"),
        {"variant": "mmseg", "weights_format": "mmseg", "align_corners": True},
    ),
}
"""`model.weights` by name: the backbones that there are, and what the weights imply."""
StartWeights = Annotated[str, AfterValidator(lambda value: value if value in WEIGHTS_BY_NAME else address_of(value))]


class Model(Section):
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "small"] = "resnet101"
    """Dilated deep-stem ResNet, output stride 8; `small` sees 55 x 55 pixels: only attention brings what lies outside."""
    recurrence: int = Field(ge=0, le=8, strict=True)
    """R, passes of the criss-cross attention; the paper uses 2, and 0 trains without attention."""
    init: Literal["kaiming", "published"] = "kaiming"
    """Random initialisation of the backbone; `published` keeps PyTorch's default, which needs ImageNet weights to train well."""
    gamma_init: float = Field(0.0, allow_inf_nan=False)
    """First value of gamma, the weight of the attention: 0 as published, 1 as in the paper's formula."""
    zero_init_residual: bool = False
    """Start residual blocks as the identity; for training from random weights."""
    variant: Literal["official", "mmseg"] = "official"
    """The published network, or that of mmsegmentation, which its checkpoints need."""
    stem: Literal["deep", "slim", "plain"] | None = None
    """First layers of the backbone; by default those of the variant. torchvision's weights need `plain`."""
    align_corners: bool | None = None
    """How scores are resized to the image: true as published, false as in mmsegmentation's configs, except those for 769 x 769.
    Null is true, unless model.weights is of mmsegmentation and does not tell: then it must be said."""
    weights: StartWeights | None = None
    """Checkpoint to start from, a file or `s3://` address; classifiers for another number of classes start at random. Two are
    fetched once, by name: `imagenet`, torchvision's weights of the backbone (stem `plain`), and `cityscapes`, a whole CCNet of
    mmsegmentation (variant `mmseg`; resnet50 and resnet101)."""
    weights_format: Literal["official", "mmseg", "torchvision", "ccnet"] = "official"
    """Origin of the checkpoint: CCNet's own repository, mmsegmentation, torchvision (a backbone), or this project."""

    @model_validator(mode="before")
    @classmethod
    def _implied_by_weights(cls, tree: Any) -> Any:
        """What weights that are named imply."""
        if not isinstance(tree, dict) or tree.get("weights") not in [*WEIGHTS_BY_NAME]:  # a list: the value may be anything
            return tree
        backbones, implied = WEIGHTS_BY_NAME[tree["weights"]]
        backbone = tree.get("backbone", cls.model_fields["backbone"].default)
        if backbone not in backbones:
            raise ValueError(
                f"weights = {tree['weights']}: backbone {backbone} has none (try model.backbone={backbones[0]}; there are "
                f"{', '.join(backbones)})"
            )
        return tree | {name: value for name, value in implied.items() if tree.get(name) in (None, "official")}


class Ohem(Section):
    thresh: float = Field(0.7, gt=0, le=1)
    """Pixels predicted right with more than this probability are ignored (published: 0.7 in the README, 0.6 in its script)."""
    min_kept: int | None = Field(None, ge=0)
    """Least number of pixels of the global batch to keep; by default 50,000 an image, because published are 100,000 (script:
    200,000) per GPU of two images."""
    factor: int = Field(8, ge=1)
    """Compute the threshold on every `factor`-th row and column; 1 uses every pixel."""


class Consistency(Section):
    weight: float = Field(1.0, gt=0)
    """Weight of the category-consistent loss; cross-entropy has weight 1."""
    channels: int = Field(16, ge=1)
    """Width to which a 1x1 convolution reduces the features (TPAMI paper: 16)."""
    layer: Literal["rcca_output", "rcca_input"] = "rcca_output"
    """Features that the loss uses: those after the attention, or those before it."""


class Loss(Section):
    aux_weight: float = Field(0.4, ge=0)
    """Weight of the auxiliary head's cross-entropy (published: 0.4)."""
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weight of each class in the cross-entropy of both heads."""
    ohem: Ohem | None = None
    """Hard-pixel cross-entropy for the main head; `{}` takes 0.7 and 50,000 an image, as published."""
    consistency: Consistency | None = None
    """Category-consistent loss of the TPAMI paper; `{}` takes its values."""
    dice_weight: float = Field(0.0, ge=0)
    """Weight of a Dice loss; cross-entropy has weight 1."""
    lovasz_weight: float = Field(0.0, ge=0)
    """Weight of a Lovasz-softmax loss; cross-entropy has weight 1."""

    @field_validator("class_weights")
    @classmethod
    def _some_weight(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not any(value):
            raise ValueError("must have a weight above 0 (try null, which weighs all classes equally)")
        return value
