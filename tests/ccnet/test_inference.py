"""Class maps equal the arg max of the resized logits."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ccnet import Output
from ccnet.inference import predict_classes
from ccnet.losses import resize_logits


class FixedLogits(nn.Module):
    """Gives the same scores whatever the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Output:
        return Output(self.logits, None)


@pytest.mark.parametrize("size", [(130, 70), (64, 65), (5, 9), (3, 4), (1, 1), (1, 17)])
@pytest.mark.parametrize("stride_size", [(5, 9), (1, 1), (1, 6), (17, 1)])
def test_equals_the_arg_max_of_the_resized_logits(size, stride_size):
    torch.manual_seed(0)
    logits = torch.randn(2, 5, *stride_size, dtype=torch.float64)
    image = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    expected = resize_logits(logits, size).argmax(1).to(torch.uint8)
    assert torch.equal(predict_classes(FixedLogits(logits), image, size), expected)


def test_the_net_is_put_into_evaluation_mode():
    net = FixedLogits(torch.zeros(1, 2, 2, 2)).train()
    predict_classes(net, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (8, 8))
    assert not net.training


def test_a_wrapped_net_is_an_error():
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    with pytest.raises(ValueError, match=r"pass net\.module"):
        predict_classes(wrapped, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (8, 8))
