"""CCNet: dilated ResNet, recurrent criss-cross attention head, auxiliary head. The input is raw pixels.

Choices where the published code (github.com/speedinghzl/CCNet) and the paper differ, or the paper is silent:
recurrence  2 in the paper, 0 (no attention at all) by default in the published train.py. It has no default here.
gamma       not in the paper; as in the published code (see CrissCrossAttention), from 0 unless `gamma_init` says else. Frozen
            at 1 it gives the paper's formula.
activation  of the heads: the paper names none. Leaky ReLU 0.01 as published, ReLU with variant="mmseg".
batch norm  published: InPlace-ABN, which scales by |weight| + 1e-5. Ours is plain and scales by weight; ccnet.weights.plain_norm
            converts.
pixels      published: minus the mean, BGR, not divided. Ours are RGB and divided by `pixel_std`, which is 1 for such weights.
resizing    of the scores to the image: published with corners aligned, by mmsegmentation mostly without (`align_corners`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from ccnet.attention import CrissCrossAttention
from ccnet.layers import SampleDropout2d
from ccnet.resnet import BASIC, Init, ResNet, Stem
from ccnet.shapes import Float, Shaped

# The published mean, in RGB order (the published code feeds BGR). The published code does not divide, because its backbone was
# trained that way. From random weights, values of up to 150 train badly, hence ImageNet's standard deviation here. A converted
# published checkpoint has its own pixel_std of 1 in the state dict, because both are buffers.
PIXEL_MEAN = (122.67891434, 116.66876762, 104.00698793)
PIXEL_STD = (58.395, 57.12, 57.375)


EmbeddingLayer = Literal["rcca_output", "rcca_input"]


class Variant(NamedTuple):
    """The differences between the two families of published CCNets."""

    stem: Stem
    ceil_mode: bool
    contract_dilation: bool
    negative_slope: float  # of the heads' activation, leaky ReLU
    auxiliary_reduction: int  # the auxiliary head has layer3's channels // this
    auxiliary_bias: bool  # whether its 3x3 convolution has a bias, although batch norm follows


# mmseg: configs/_base_/models/ccnet_r50-d8.py, models/backbones/resnet.py and models/decode_heads of mmsegmentation 1.2.2.
VARIANTS = {
    "official": Variant(
        "deep", ceil_mode=True, contract_dilation=False, negative_slope=0.01, auxiliary_reduction=2, auxiliary_bias=True
    ),
    "mmseg": Variant(
        "slim", ceil_mode=False, contract_dilation=True, negative_slope=0.0, auxiliary_reduction=4, auxiliary_bias=False
    ),
}


class Output(NamedTuple):
    """Class scores at stride 8: `logits` of the main head, `aux_logits` of the auxiliary head, None if built without it.

    `embedding` is the input of the category-consistent loss, None if the net is built without it.
    """

    logits: Float[Tensor, "B K h w"]
    aux_logits: Float[Tensor, "B K h w"] | None
    embedding: Float[Tensor, "B D h w"] | None = None


# So that a program of torch.export with this output can be saved: torch knows named tuples, but no name to store one under.
_register_namedtuple(Output, serialized_type_name="ccnet.model.Output")


def _conv_norm_act(in_channels: int, out_channels: int, negative_slope: float, *, bias: bool = False) -> list[nn.Module]:
    # Leaky ReLU 0.01 is what the published in-place batch norm applies; its heads have no other activation.
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    return [conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(negative_slope, inplace=True)]


def _classifier(in_channels: int, channels: int, num_classes: int, negative_slope: float, *, bias: bool = False) -> nn.Sequential:
    """3x3 convolution, batch norm, leaky ReLU, dropout, 1x1 convolution to class scores."""
    conv, norm, act = _conv_norm_act(in_channels, channels, negative_slope, bias=bias)
    # Activation and dropout share one index, so that the last convolution has number 3 as in published checkpoints.
    return nn.Sequential(conv, norm, nn.Sequential(act, SampleDropout2d(0.1)), nn.Conv2d(channels, num_classes, 1))


class RCCAHead(nn.Module):
    """Recurrent criss-cross attention and the classifier after it (CCNet section 3.3).

    H = conva(x); H' = attention(... attention(H)), R times with the same weights; logits = bottleneck([x, convb(H')]).
    The width of H and H' is in_channels // 4, `channels` is the width before the last 1x1 convolution (512 and 512 as published).
    R = 0 is the baseline without attention: the attention's parameters stay in the state dict but are frozen. `negative_slope` is
    that of the three leaky ReLUs; 0 makes them ReLUs. `gamma_init` is the attention's first gamma.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        recurrence: int,
        *,
        negative_slope: float = 0.01,
        gamma_init: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(recurrence, int) or isinstance(recurrence, bool) or recurrence < 0:
            raise ValueError(f"recurrence = {recurrence!r}: must be an integer >= 0 (the paper uses 2)")
        if in_channels < 32:
            raise ValueError(f"in_channels = {in_channels}: must be at least 32 (query and key are in_channels // 4 // 8 wide)")
        self.recurrence = recurrence
        inner = in_channels // 4
        self.conva = nn.Sequential(*_conv_norm_act(in_channels, inner, negative_slope))
        self.attention = CrissCrossAttention(inner, gamma_init=gamma_init)
        # DistributedDataParallel stops at trainable parameters that never get a gradient.
        self.attention.requires_grad_(recurrence > 0)
        self.convb = nn.Sequential(*_conv_norm_act(inner, inner, negative_slope))
        self.bottleneck = _classifier(in_channels + inner, channels, num_classes, negative_slope)

    def recur(self, reduced: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """R passes of attention over the reduced feature map: H -> H'."""
        for _ in range(self.recurrence):
            reduced = self.attention(reduced)
        return reduced

    def context(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """Backbone features -> H'."""
        return self.recur(self.conva(x))

    def classify(self, x: Float[Tensor, "B C h w"], context: Float[Tensor, "B D h w"]) -> Float[Tensor, "B K h w"]:
        """Backbone features and H' -> class scores."""
        fused = torch.cat([x, self.convb(context)], dim=1)  # [B, C + D, h, w]
        logits: Tensor = self.bottleneck(fused)
        return logits

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        """Backbone features -> class scores of the same size."""
        return self.classify(x, self.context(x))


class CCNet(nn.Module):
    """The whole network, from raw pixels to class scores at stride 8. Build it with `build_ccnet`.

    `align_corners` says how its scores are resized to an image or label, by losses, inference and export.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: ResNet,
        head: RCCAHead,
        auxiliary: nn.Module | None,
        embedding: nn.Module | None,
        embedding_layer: str,
        *,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary = auxiliary
        self.embedding = embedding
        self.embedding_layer = embedding_layer
        self.align_corners = align_corners
        # In float32: `mps` has no float64. A net that becomes double later keeps float32's rounding, 7e-8 of its scores.
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))

    def forward(self, image: Shaped[Tensor, "B C H W"]) -> Output:
        """Image uint8[B, 3, H, W], RGB -> Output of float[B, K, h, w], h = floor(H / 8) + 1 for H = 8k + 1.

        ValueError for another dtype or number of channels, because normalisation happens here and nowhere else. The auxiliary
        scores are computed in evaluation too.
        """
        return self.scores(self.normalise(image))

    @property
    def gamma(self) -> float | None:
        """Weight of the attention in H': at 0 the network computes what it would without it. None if R = 0."""
        return self.head.attention.gamma.item() if self.head.recurrence else None

    @contextmanager
    def attention_off(self) -> Iterator[None]:
        """Runs the same weights with R = 0: the ablation that tells how much of a score is the attention's."""
        recurrence, self.head.recurrence = self.head.recurrence, 0
        try:
            yield
        finally:
            self.head.recurrence = recurrence

    def normalise(self, image: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
        """uint8[B, 3, H, W] RGB -> (image - pixel_mean) / pixel_std in the dtype of the weights. ValueError as in `forward`."""
        if image.dtype != torch.uint8 or image.shape[1] != 3:
            fix = "values 0 to 1: (255 * image).round().to(torch.uint8)" if image.is_floating_point() else ""
            fix = "channels first: image.permute(0, 3, 1, 2)" if image.shape[1] != 3 == image.shape[-1] else fix
            came = f"{image.dtype}{list(image.shape)}"
            raise ValueError(f"image is {came}: must be torch.uint8[B, 3, H, W], RGB, not normalised{fix and f' ({fix})'}")
        dtype = self.backbone.conv1.weight.dtype
        return (image.to(dtype) - self.pixel_mean.to(dtype)) / self.pixel_std.to(dtype)

    def scores(self, x: Float[Tensor, "B 3 H W"]) -> Output:
        """Normalised image -> Output. A separate method for inference, which resizes and pads normalised images."""
        layer3, layer4 = self.backbone(x)
        reduced = self.head.conva(layer4)
        context = self.head.recur(reduced)
        embedding = None
        if self.embedding is not None:
            embedding = self.embedding(context if self.embedding_layer == "rcca_output" else reduced)
        logits = self.head.classify(layer4, context)
        return Output(logits, None if self.auxiliary is None else self.auxiliary(layer3), embedding)


def default_stem(backbone: str, variant: str) -> Stem:
    """The stem of a network for which none is chosen: that of the variant, and "slim" for the backbone "small"."""
    return "slim" if backbone == "small" else VARIANTS[variant].stem


def build_ccnet(
    *,
    backbone: str,
    num_classes: int,
    recurrence: int,
    variant: Literal["official", "mmseg"] = "official",
    stem: Stem | None = None,
    auxiliary: bool = True,
    init: Init = "kaiming",
    zero_init_residual: bool = False,
    gamma_init: float = 0.0,
    embedding_channels: int | None = None,
    embedding_layer: EmbeddingLayer = "rcca_output",
    align_corners: bool = True,
) -> CCNet:
    """CCNet with random weights: `backbone` resnet18, resnet34, resnet50, resnet101 or small; `recurrence` R >= 0, no default.

    The widths follow from the backbone (in_channels // 4 for the main head, in_channels // 2 for the auxiliary one), which
    gives the published 512 and 512 for resnet50 and resnet101. `variant` "mmseg" is the network of mmsegmentation; VARIANTS
    lists the differences (auxiliary head 256 wide). `stem` None is the variant's stem ("slim" for the small backbone), "plain"
    the one that torchvision's weights need. `init` "kaiming" and `zero_init_residual` concern the backbone (see ResNet). The
    heads start from PyTorch's defaults as published, and with `init` "published" everything does. `gamma_init` is the
    attention's first gamma: from the published 0 it grows only where the attention pays at once.
    `embedding_channels` adds the 1x1 convolution that reduces the RCCA module's output or input (`embedding_layer`) for the
    category-consistent loss (16 in the TPAMI paper); None adds none.
    `align_corners` is how the scores are resized: True as published; False in mmsegmentation, except for crops of 769 x 769. No
    weight depends on it, but a network trained one way is off by up to 4 pixels the other way.
    ValueError names the setting that is out of range.
    """
    if not isinstance(num_classes, Integral):
        raise ValueError(f"num_classes = {num_classes!r}: must be an integer")
    if not 2 <= num_classes <= 255:
        raise ValueError(
            f"num_classes = {num_classes}: must be 2 to 255 (labels are uint8 and 255 means ignore; scores go through a "
            "soft-max, which is 1 for a single class: for a binary task use 2 classes, background 0 and object 1)"
        )
    choices = {
        "variant": (variant, tuple(VARIANTS)),
        "stem": (stem, (None, *get_args(Stem))),
        "init": (init, get_args(Init)),
        "embedding_layer": (embedding_layer, get_args(EmbeddingLayer)),
        "align_corners": (align_corners, (True, False)),
    }
    for name, (value, legal) in choices.items():
        if value not in legal:
            raise ValueError(f"{name} = {value!r}: must be one of {', '.join(map(repr, legal))}")
    if embedding_channels is not None and (not isinstance(embedding_channels, Integral) or embedding_channels < 1):
        raise ValueError(f"embedding_channels = {embedding_channels!r}: must be at least 1, or None for no embedding")
    if not math.isfinite(gamma_init):
        raise ValueError(f"gamma_init = {gamma_init}: must be a finite number (0 as published, 1 as in the paper)")
    if variant == "mmseg" and backbone in BASIC:
        # mmsegmentation dilates only the first convolution of their blocks, and no CCNet with such blocks is published.
        raise ValueError(
            f"backbone = {backbone!r}: variant 'mmseg' needs resnet50 or resnet101 (variant 'official' takes this one)"
        )
    v = VARIANTS[variant]
    net = ResNet(
        backbone,
        zero_init_residual,
        stem=stem or default_stem(backbone, variant),
        ceil_mode=v.ceil_mode,
        contract_dilation=v.contract_dilation,
        init=init,
    )
    layer3, layer4, slope = net.num_layer3_channels, net.num_layer4_channels, v.negative_slope
    head = RCCAHead(layer4, layer4 // 4, num_classes, recurrence, negative_slope=slope, gamma_init=gamma_init)
    width = layer3 // v.auxiliary_reduction
    auxiliary_head = _classifier(layer3, width, num_classes, slope, bias=v.auxiliary_bias) if auxiliary else None
    embedding = None if embedding_channels is None else nn.Conv2d(layer4 // 4, embedding_channels, 1)
    return CCNet(net, head, auxiliary_head, embedding, embedding_layer, align_corners=align_corners)
