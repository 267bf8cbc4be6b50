"""Dilated ResNets with output stride 8, and a small one that sees little around a pixel."""

from typing import Literal

from torch import Tensor, nn

from ccnet.shapes import Float

BLOCKS_PER_STAGE: dict[str, tuple[int, int, int, int]] = {
    "small": (1, 1, 0, 0),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}

BASIC = ("small", "resnet18", "resnet34")
"""The backbones of basic blocks; the others have bottlenecks."""

Stem = Literal["deep", "slim", "plain"]
STEM_WIDTHS: dict[Stem, tuple[int, int, int]] = {"deep": (64, 64, 128), "slim": (32, 32, 64)}

Init = Literal["kaiming", "published"]


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (small, ResNet-18 and -34), both dilated."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride, dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, dilated), 1x1 convolutions (ResNet-50 and -101)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride, dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """ResNet that keeps its resolution after layer2: layer3 has dilation 2, layer4 dilation 4.

    An edge of n = 8k + 1 pixels, the aligned input size, gives k + 1 features. `backbone` "small" ends after layer2, with one
    block a stage: a feature sees 55 x 55 pixels, a score without attention 103 x 103. Its layer3 and layer4 pass layer2's
    features on. The defaults are those of the published CCNet. The options are for related networks:
    stem: "deep" is three 3x3 convolutions of 64, 64, 128 channels, "slim" the same with 32, 32, 64 (ResNetV1c of mmsegmentation),
    "plain" one 7x7 convolution of 64 (torchvision).
    ceil_mode: that of the pooling after the stem. With it any n gives floor((n + 1) / 8) + 1 features, without it ceil(n / 8).
    contract_dilation: the first block of layer3 and of layer4 has half the dilation of its stage, as in mmsegmentation's CCNet
    and with torchvision's `replace_stride_with_dilation`.
    init: "kaiming" starts convolutions from kaiming_normal (fan_out, relu), "published" from PyTorch's defaults as the published
    code does, which always loads an ImageNet backbone. We also train from random weights, where the variance of PyTorch's
    default, 1 / (3 fan_in), makes the residual branches fade out.
    zero_init_residual: the last batch norm of each block starts at scale 0, so that a block starts as the identity (Goyal et al.
    2017, section 5.1). From random weights training then starts faster and amplifies rounding less.
    ValueError for an unknown backbone.
    """

    def __init__(
        self,
        backbone: str,
        zero_init_residual: bool = False,
        *,
        stem: Stem = "deep",
        ceil_mode: bool = True,
        contract_dilation: bool = False,
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        if backbone not in BLOCKS_PER_STAGE:
            raise ValueError(f"backbone = {backbone!r}: must be one of {', '.join(BLOCKS_PER_STAGE)}")
        block = BasicBlock if backbone in BASIC else Bottleneck
        num_blocks = BLOCKS_PER_STAGE[backbone]
        contraction = 2 if contract_dilation else 1
        width = self._add_stem(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=ceil_mode)
        self.layer1 = _stage(block, width, 64, num_blocks[0])
        self.layer2 = _stage(block, 64 * block.expansion, 128, num_blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, num_blocks[2], dilations=(2 // contraction, 2))
        self.layer4 = _stage(block, 256 * block.expansion, 512, num_blocks[3], dilations=(4 // contraction, 4))
        self.num_layer3_channels = (256 if num_blocks[2] else 128) * block.expansion
        self.num_layer4_channels = (512 if num_blocks[3] else 128) * block.expansion
        for module in self.modules():
            if init == "kaiming" and isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)

    def _add_stem(self, stem: Stem) -> int:
        """Register the stem's layers under their published names and return its output width."""
        self.stem = stem
        if stem == "plain":
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
            return 64
        first, second, third = STEM_WIDTHS[stem]
        self.conv1, self.bn1 = _conv3x3(3, first, stride=2), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = _conv3x3(first, second), nn.BatchNorm2d(second)
        self.conv3, self.bn3 = _conv3x3(second, third), nn.BatchNorm2d(third)
        return third

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B C3 h w"], Float[Tensor, "B C4 h w"]]:
        """Normalised image -> (layer3 features, layer4 features), both at stride 8."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.stem != "plain":
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        x = self.layer2(self.layer1(self.maxpool(x)))
        layer3 = self.layer3(x)
        return layer3, self.layer4(layer3)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    num_blocks: int,
    *,
    stride: int = 1,
    dilations: tuple[int, int] = (1, 1),
) -> nn.Sequential:
    """One stage of `num_blocks` blocks, which may be none; `dilations` are those of the first block and of the others."""
    if not num_blocks:
        return nn.Sequential()
    first = block(in_channels, channels, stride, dilations[0])
    rest = [block(channels * block.expansion, channels, 1, dilations[1]) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)
