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
    with pytest.raises(ValueError, match="backbone = 'resnet19': must be one of resnet18, resnet34, resnet50, resnet101"):
        ResNet("resnet19")


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_blocks_can_start_as_the_identity(backbone: str) -> None:
    net = ResNet(backbone, zero_init_residual=True).eval()
    block, x = net.layer1[1], torch.rand(1, net.layer1[1].conv1.in_channels, 5, 5)
    assert torch.equal(block(x), x)
