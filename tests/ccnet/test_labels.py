"""Labels that do not fit are refused in one sentence, and nothing is trained with them."""

import copy

import pytest
import torch

from ccnet import build_ccnet, build_optimizer, train_step
from ccnet.labels import screened
from ccnet.losses import Objective
from tests.ccnet.tiny import tiny_batch, tiny_net

pytestmark = pytest.mark.usefixtures("unchecked")


def step(image, label, net=None, **options):
    net = net or tiny_net()
    optimizer = build_optimizer(net, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    return train_step(net, optimizer, image, label, **{"learning_rate": 0.1, "seed": 0, "step": 0} | options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda label: torch.cat([label, label[:1]]),
            r"label is \[4, 32, 40\], .*: label must be \[3, 32, 40\] \(3 images need 3",
        ),
        (lambda label: label.mT, r"label must be \[3, 32, 40\] \(rows and columns are swapped: label.mT\)"),
        (lambda label: label[:, None], r"label is \[3, 1, 32, 40\], .*: label must be \[3, 32, 40\]"),
        (lambda label: label[:, ::2], r"label is \[3, 16, 40\]"),
        (lambda label: label / 255, r"label is torch.float32\[3, 32, 40\]: must be integers, .* \(a mask of 0 and 1: label.long"),
        (lambda label: label == 1, r"label is torch.bool\[3, 32, 40\]: must be integers"),
        (lambda label: label.where(label != 4, 7), r"label holds class id \[7\]: must be 0 to 4 or 255, which is ignored"),
        (lambda label: label.long() - 1, r"label holds class id \[-1, 254\]: must be 0 to 4"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"micro_batch": 1, "objective": Objective(class_weights=(1.0,) * 5)}])
def test_a_label_that_does_not_fit_is_refused_and_trains_nothing(change, message, options):
    image, label = tiny_batch(3)
    net = tiny_net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        step(image, change(label), net, **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_screening_ignores_what_is_no_class_and_says_so():
    label = torch.tensor([[[0, 4, 255], [5, -1, 300]]])
    kept, legal = screened(label, 5)
    assert kept.tolist() == [[[0, 4, 255], [255, 255, 255]]]
    assert not legal
    assert screened(kept, 5)[1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_trains_alike(dtype):
    image, label = tiny_batch(3)
    assert step(image, label.to(dtype)).losses["loss"] == step(image, label).losses["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32"}, "precision = 'fp32': must be one of 'float32', 'bf16', 'fp16'"),
        ({"learning_rate": float("nan")}, "learning_rate = nan: must be a finite number >= 0"),
        ({"learning_rate": -0.1}, "learning_rate = -0.1: must be"),
    ],
)
def test_settings_of_a_step_that_do_not_exist_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        step(*tiny_batch(2), **options)


def test_one_class_is_refused_with_the_way_for_binary_tasks():
    with pytest.raises(ValueError, match=r"num_classes = 1: must be 2 to 255 .* for a binary task use 2"):
        build_ccnet(backbone="resnet18", num_classes=1, recurrence=1)
