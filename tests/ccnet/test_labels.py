"""Labels that do not fit are refused in one sentence, and nothing is trained with them."""

import copy
from functools import partial

import pytest
import torch

from ccnet import BoundaryIoU, ConfusionMatrix, build_ccnet, build_optimizer, losses, train_step
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
        (
            lambda label: label[:, None],
            r"label is \[3, 1, 32, 40\], .*: label must be \[3, 32, 40\] \(it has a channel: label\[:, 0",
        ),
        (lambda label: label[..., None], r"label must be \[3, 32, 40\] \(it has a channel: label\[..., 0\]\)"),
        (lambda label: label[:, None].expand(-1, 5, -1, -1), r"\(one channel for each class: label.argmax\(1\)\)"),
        (lambda label: label[..., None].expand(-1, -1, -1, 3), r"\(colours are no class ids: look each one up"),
        (lambda label: label[0], r"label is \[32, 40\], .*: label must be \[3, 32, 40\] \(3 images need 3 labels"),
        (lambda label: label.numpy(), r"label is a ndarray: must be a tensor of integers \(of an array: torch.from_numpy\(label"),
        (lambda label: label[:, ::2], r"label is \[3, 16, 40\]"),
        (lambda label: label / 255, r"label is torch.float32\[3, 32, 40\]: must be integers, .* \(a mask of 0 and 1: label.long"),
        (lambda label: label / 255, r"divided by 255, as ToTensor does: \(255 \* label\).round\(\).long\(\)"),
        (lambda label: label.to(torch.int8), r"label holds class id \[-1\]: must be 0 to 4 or 255"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda image: image.permute(0, 2, 3, 1),
            r"image is \[3, 32, 40, 3\]: must be .* channels first: image.permute\(0, 3, 1, 2\)",
        ),
        (lambda image: image[:0], r"image is \[0, 3, 32, 40\]: must be a tensor \[B, 3, H, W\] of at least one image"),
        (lambda image: image[0], r"image is \[3, 32, 40\]: must be a tensor .* \(of one image: image\[None\]\)"),
    ],
)
def test_images_of_another_shape_are_refused_with_the_fix(change, message):
    image, label = tiny_batch(3)
    with pytest.raises(ValueError, match=message):
        step(change(image), label)


@pytest.mark.parametrize("spoil", [lambda label: label / 255, lambda label: label == 1], ids=["float", "bool"])
def test_no_loss_and_no_score_takes_labels_that_are_no_integers(spoil):
    """`long()` makes class 0 of all of a label that was divided by 255."""
    label = torch.randint(0, 5, (2, 9, 9))
    logits = torch.randn(2, 5, 9, 9)
    functions = [losses.cross_entropy, losses.ohem_cross_entropy, losses.dice, losses.lovasz_softmax]
    functions += [partial(losses.category_consistent, num_classes=5)]
    for function in functions:
        with pytest.raises(ValueError, match="must be integers, the class id of every pixel"):
            function(logits, spoil(label))
    for counts in (ConfusionMatrix(5), BoundaryIoU(5)):
        with pytest.raises(ValueError, match=r"label is .*: must be integers"):
            counts.update(label, spoil(label))
        with pytest.raises(ValueError, match=r"prediction is .*: must be integers"):
            counts.update(spoil(label), label)
        assert counts.counts.sum() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64])
def test_every_integer_type_trains_alike(dtype):
    image, label = tiny_batch(3)
    assert step(image, label.to(dtype)).losses["loss"] == step(image, label).losses["loss"]
    counts = ConfusionMatrix(5)
    counts.update(label.to(dtype), label.to(dtype))
    assert counts.counts.sum() == (label != 255).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32"}, "precision = 'fp32': must be one of 'float32', 'bf16', 'fp16'"),
        ({"learning_rate": float("nan")}, "learning_rate = nan: must be a finite number >= 0"),
        ({"precision": "FP16"}, "precision = 'FP16': must be one of"),
        ({"precision": None}, "precision = None: must be one of"),
        ({"learning_rate": -0.1}, "learning_rate = -0.1: must be"),
        ({"learning_rate": float("inf")}, "learning_rate = inf: must be"),
        ({"learning_rate": "0.1"}, "learning_rate = '0.1': must be a finite number"),
        ({"clip_norm": -1.0}, "clip_norm = -1.0: must be a finite number > 0, or None"),
        ({"clip_norm": float("nan")}, "clip_norm = nan: must be"),
        ({"micro_batch": 1.5}, "micro_batch = 1.5: must be at least 1 image"),
    ],
)
def test_settings_of_a_step_that_do_not_exist_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        step(*tiny_batch(2), **options)


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, "0.1", None])
def test_an_optimizer_takes_finite_numbers_only(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value!r}: must be a finite number >= 0"):
        build_optimizer(tiny_net(), **{"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0} | {name: value})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_classes": 2.0}, "num_classes = 2.0: must be an integer"),
        ({"num_classes": "2"}, "num_classes = '2': must be an integer"),
        ({"recurrence": 2.0}, "recurrence = 2.0: must be an integer"),
        ({"recurrence": True}, "recurrence = True: must be an integer"),
        ({"recurrence": "2"}, "recurrence = '2': must be an integer"),
        ({"embedding_channels": "16"}, "embedding_channels = '16': must be at least 1"),
    ],
)
def test_settings_of_a_network_of_another_type_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        build_ccnet(**{"backbone": "resnet18", "num_classes": 2, "recurrence": 1} | setting)


def test_one_class_is_refused_with_the_way_for_binary_tasks():
    with pytest.raises(ValueError, match=r"num_classes = 1: must be 2 to 255 .* for a binary task use 2"):
        build_ccnet(backbone="resnet18", num_classes=1, recurrence=1)
