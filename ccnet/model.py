"""CCNet: dilated ResNet, recurrent criss-cross attention head, auxiliary head; raw pixels in."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ccnet.attention import CrissCrossAttention
from ccnet.layers import SampleDropout2d
from ccnet.resnet import ResNet

# The published mean, in RGB order (the published code feeds BGR). The published code does not divide, its backbone was trained
# so; from random weights values of up to 150 train badly, hence ImageNet's deviation here. A converted published checkpoint
# brings its own pixel_std of 1 in the state dict: both are buffers.
PIXEL_MEAN = (122.67891434, 116.66876762, 104.00698793)
PIXEL_STD = (58.395, 57.12, 57.375)


class Output(NamedTuple):
    """Class scores at stride 8: `logits` of the main head, `aux_logits` of the auxiliary head, None when built without it.

    `embedding` is what the category-consistent loss works on, None when built without it.
    """

    logits: Float[Tensor, "B K h w"]
    aux_logits: Float[Tensor, "B K h w"] | None
    embedding: Float[Tensor, "B D h w"] | None = None


def _conv_norm_act(in_channels: int, out_channels: int, *, bias: bool = False) -> list[nn.Module]:
    # Leaky ReLU 0.01 is what the published in-place batch norm applies; its heads have no other activation.
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    return [conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.01, inplace=True)]


def _classifier(in_channels: int, channels: int, num_classes: int, *, bias: bool = False) -> nn.Sequential:
    """3x3 convolution, batch norm, leaky ReLU, dropout, 1x1 convolution to class scores."""
    conv, norm, act = _conv_norm_act(in_channels, channels, bias=bias)
    # Activation and dropout share a place, so that the last convolution is number 3 as in published checkpoints.
    return nn.Sequential(conv, norm, nn.Sequential(act, SampleDropout2d(0.1)), nn.Conv2d(channels, num_classes, 1))


class RCCAHead(nn.Module):
    """Recurrent criss-cross attention and the classifier after it (CCNet section 3.3).

    H = conva(x); H' = attention(... attention(H)), R times with the same weights; logits = bottleneck([x, convb(H')]).
    The width of H and H' is in_channels // 4, `channels` is the width before the last 1x1 convolution (512 and 512 as published).
    R = 0 is the baseline without attention: its parameters stay in the state dict but are frozen.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, recurrence: int) -> None:
        super().__init__()
        if not isinstance(recurrence, int) or isinstance(recurrence, bool) or recurrence < 0:
            raise ValueError(f"recurrence = {recurrence!r}: must be an integer >= 0 (the paper uses 2)")
        self.recurrence = recurrence
        inner = in_channels // 4
        self.conva = nn.Sequential(*_conv_norm_act(in_channels, inner))
        self.attention = CrissCrossAttention(inner)
        # DistributedDataParallel stops at trainable parameters that never get a gradient.
        self.attention.requires_grad_(recurrence > 0)
        self.convb = nn.Sequential(*_conv_norm_act(inner, inner))
        self.bottleneck = _classifier(in_channels + inner, channels, num_classes)

    def recur(self, reduced: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """R passes of attention over the reduced feature map: H' of H."""
        for _ in range(self.recurrence):
            reduced = self.attention(reduced)
        return reduced

    def context(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """H' of the backbone features."""
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
    """The whole network, from raw pixels to class scores at stride 8. Build it with `build_ccnet`."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, backbone: ResNet, head: RCCAHead, auxiliary: nn.Module | None, embedding: nn.Module | None, embedding_layer: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary = auxiliary
        self.embedding = embedding
        self.embedding_layer = embedding_layer
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))

    def forward(self, image: Shaped[Tensor, "B C H W"]) -> Output:
        """Image uint8[B, 3, H, W], RGB -> Output of float[B, K, h, w], h = floor(H / 8) + 1 for H = 8k + 1.

        ValueError for another dtype or number of channels: normalisation happens here and nowhere else. The auxiliary scores are
        computed in evaluation too.
        """
        return self.scores(self.normalise(image))

    def normalise(self, image: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
        """uint8[B, 3, H, W] RGB -> (image - pixel_mean) / pixel_std in the dtype of the buffers. ValueError as in `forward`."""
        if image.dtype != torch.uint8 or image.shape[1] != 3:
            raise ValueError(f"image is {image.dtype}{list(image.shape)}: must be torch.uint8[B, 3, H, W], RGB, not normalised")
        return (image.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def scores(self, x: Float[Tensor, "B 3 H W"]) -> Output:
        """Normalised image -> Output; for inference that resizes or pads what is normalised already."""
        layer3, layer4 = self.backbone(x)
        reduced = self.head.conva(layer4)
        context = self.head.recur(reduced)
        embedding = None
        if self.embedding is not None:
            embedding = self.embedding(context if self.embedding_layer == "rcca_output" else reduced)
        logits = self.head.classify(layer4, context)
        return Output(logits, None if self.auxiliary is None else self.auxiliary(layer3), embedding)


def build_ccnet(
    *,
    backbone: str,
    num_classes: int,
    recurrence: int,
    auxiliary: bool = True,
    zero_init_residual: bool = False,
    embedding_channels: int | None = None,
    embedding_layer: Literal["rcca_output", "rcca_input"] = "rcca_output",
) -> CCNet:
    """CCNet with random weights: `backbone` resnet18, resnet34, resnet50 or resnet101; `recurrence` R >= 0, without a default.

    The widths follow the backbone (in_channels // 4 for the main head, in_channels // 2 for the auxiliary one), which gives the
    published 512 and 512 for resnet50 and resnet101. Convolutions of the backbone start from kaiming_normal (see ResNet), the
    heads from PyTorch's defaults as published; `zero_init_residual` starts every residual block as the identity.
    `embedding_channels` adds the 1x1 convolution that reduces the RCCA module's output or input, by `embedding_layer`, for the
    category-consistent loss (16 in the TPAMI paper); None leaves it out.
    ValueError names the setting that is out of range.
    """
    if not 1 <= num_classes <= 255:
        raise ValueError(f"num_classes = {num_classes}: must be 1 to 255 (labels are uint8 and 255 means ignore)")
    net = ResNet(backbone, zero_init_residual)
    layer3, layer4 = net.num_layer3_channels, net.num_layer4_channels
    head = RCCAHead(layer4, layer4 // 4, num_classes, recurrence)
    # As published, this convolution has a bias although batch norm follows.
    auxiliary_head = _classifier(layer3, layer3 // 2, num_classes, bias=True) if auxiliary else None
    embedding = None if embedding_channels is None else nn.Conv2d(layer4 // 4, embedding_channels, 1)
    return CCNet(net, head, auxiliary_head, embedding, embedding_layer)
