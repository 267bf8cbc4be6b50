"""Dilated ResNets: sizes, strides, dilation."""

import pytest
import torch
from torch import nn

from ccnet.resnet import ResNet


@pytest.mark.parametrize(("backbone", "channels"), [("resnet18", (256, 512)), ("resnet50", (1024, 2048))])
@pytest.mark.parametrize(("pixels", "features"), [(97, 13), (64, 9), (33, 5), (1, 1)])
def test_output_stride_is_eight(backbone, channels, pixels, features):
    net = ResNet(backbone).eval()
    with torch.no_grad():
        layer3, layer4 = net(torch.zeros(1, 3, pixels, 33))
    assert layer3.shape == (1, channels[0], features, 5)
    assert layer4.shape == (1, channels[1], features, 5)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_every_3x3_convolution_of_layer3_and_layer4_is_dilated(backbone):
    net = ResNet(backbone)
    for stage, dilation in ((net.layer2, 1), (net.layer3, 2), (net.layer4, 4)):
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {m.dilation for m in convs} == {(dilation, dilation)}


def test_an_unknown_backbone_is_an_error():
    with pytest.raises(ValueError, match="backbone = 'resnet19': must be one of small, resnet18, resnet34, resnet50, resnet101"):
        ResNet("resnet19")


@pytest.mark.parametrize("pixels", [97, 64, 33])
def test_the_small_backbone_ends_after_layer2(pixels: int) -> None:
    net = ResNet("small", stem="slim").eval()
    with torch.no_grad():
        layer3, layer4 = net(torch.zeros(1, 3, pixels, 33))
    assert layer3 is layer4
    assert layer4.shape == (1, net.num_layer4_channels, pixels // 8 + 1, 5) == (1, net.num_layer3_channels, pixels // 8 + 1, 5)
    assert not any(name.startswith(("layer3", "layer4")) for name in net.state_dict())


def test_a_feature_of_the_small_backbone_sees_55_pixels() -> None:
    torch.manual_seed(0)
    net = ResNet("small", stem="slim").double().eval()
    x = torch.rand(1, 3, 129, 129, dtype=torch.float64, requires_grad=True)
    net(x)[1][0, :, 8, 8].square().sum().backward()
    assert x.grad is not None
    rows, columns = x.grad[0].abs().sum(0).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64 - 27, 64 + 27, 64 - 27, 64 + 27)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_blocks_can_start_as_the_identity(backbone: str) -> None:
    net = ResNet(backbone, zero_init_residual=True).eval()
    block, x = net.layer1[1], torch.rand(1, net.layer1[1].conv1.in_channels, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("ceil_mode", "features"), [(True, 9), (False, 8)])
def test_ceil_mode_adds_a_feature_to_a_multiple_of_eight(ceil_mode: bool, features: int) -> None:
    net = ResNet("resnet18", ceil_mode=ceil_mode).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 64, 33))[0].shape == (1, 256, features, 5)


def test_contracted_dilation_halves_that_of_the_first_block() -> None:
    net = ResNet("resnet50", contract_dilation=True)
    for stage, first, others in ((net.layer3, 1, 2), (net.layer4, 2, 4)):
        assert [block.conv2.dilation[0] for block in stage] == [first] + [others] * (len(stage) - 1)


@pytest.mark.parametrize(
    ("stem", "shapes"),
    [
        ("deep", [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)]),
        ("slim", [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)]),
        ("plain", [(64, 3, 7, 7)]),
    ],
)
def test_stems(stem: str, shapes: list[tuple[int, ...]]) -> None:
    net = ResNet("resnet18", stem=stem).eval()
    convolutions = [tuple(child.weight.shape) for child in net.children() if isinstance(child, nn.Conv2d)]
    assert convolutions == shapes
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 33, 41))[1].shape == (1, 512, 5, 6)
