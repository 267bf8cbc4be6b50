"""One training step, alone and on two workers; one evaluation step."""

import pytest
import torch

from ccnet import ConfusionMatrix, build_ccnet, build_optimizer, evaluate_step, train_step
from ccnet.losses import Objective


def tiny_net(seed: int = 0):
    torch.manual_seed(seed)
    return build_ccnet(backbone="resnet18", num_classes=3, recurrence=1)


def tiny_batch():
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8, generator=generator)
    return image, torch.randint(0, 3, (2, 33, 33), dtype=torch.uint8, generator=generator)


def trained(steps, *, seed=5, label=None):
    net = tiny_net()
    image, given_label = tiny_batch()
    optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
    label = given_label if label is None else label
    results = [train_step(net, optimizer, image, label, learning_rate=0.02, seed=seed, step=step) for step in steps]
    return net.state_dict(), [result.losses["loss"].item() for result in results]


@pytest.mark.parametrize("objective", ["training", "training on every term"])
def test_two_workers_train_like_one(workers, within, objective):
    alone, both = workers[0][objective], [worker[objective] for worker in workers[1]]
    for worker in both:
        for name, value in alone.items():
            within(worker[name], value, 1e-9)
    for name, value in both[0].items():
        assert torch.equal(value, both[1][name]), name


def test_losses_fall():
    _, losses = trained(range(8))
    assert losses[-1] < losses[0]


def test_the_same_seed_and_step_give_the_same_bits_and_others_do_not():
    weights, losses = trained([0, 1])
    again, _ = trained([0, 1])
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert trained([0, 1], seed=6)[1] != losses
    assert trained([0, 2])[1] != losses


def test_the_learning_rate_is_the_one_given():
    net, (image, label) = tiny_net(), tiny_batch()
    optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    before = net.head.bottleneck[3].bias.detach().clone()
    train_step(net, optimizer, image, label, learning_rate=0.125, seed=0, step=0)
    bias = net.head.bottleneck[3].bias
    torch.testing.assert_close(bias.detach(), before - 0.125 * bias.grad)


def test_the_step_reports_the_loss_and_what_it_consists_of():
    net, (image, label) = tiny_net(), tiny_batch()
    optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
    objective = Objective(aux_weight=0.25, dice_weight=0.5)
    means = train_step(net, optimizer, image, label, learning_rate=0.02, objective=objective, seed=0, step=0).losses
    assert list(means) == ["loss", "main", "dice", "aux"]
    assert not any(mean.requires_grad for mean in means.values())
    assert means["loss"].item() == pytest.approx((means["main"] + 0.5 * means["dice"] + 0.25 * means["aux"]).item(), rel=1e-12)


def test_class_weights_below_one_still_give_a_mean():
    net, (image, _) = tiny_net(), tiny_batch()
    label = torch.full((2, 33, 33), 255, dtype=torch.uint8)
    label[0, 0, 0] = 1
    optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
    light = Objective(class_weights=(1.0, 0.125, 1.0))
    weighted = train_step(net, optimizer, image, label, learning_rate=0.0, objective=light, seed=0, step=0)
    plain = train_step(net, optimizer, image, label, learning_rate=0.0, seed=0, step=0)
    assert weighted.losses["main"].item() == pytest.approx(plain.losses["main"].item(), rel=1e-5)


def test_a_batch_without_valid_pixels_has_loss_zero_and_finite_weights():
    weights, losses = trained([0], label=torch.full((2, 33, 33), 255, dtype=torch.uint8))
    assert losses == [0.0]
    assert all(value.isfinite().all() for value in weights.values())


def test_evaluation_predicts_at_the_size_of_the_label_and_counts_every_pixel():
    net, (image, _) = tiny_net(), tiny_batch()
    label = torch.zeros(2, 40, 50, dtype=torch.uint8)
    label[0, 0] = 255
    confusion = ConfusionMatrix(3)
    prediction = evaluate_step(net, image, label, confusion)
    assert (prediction.dtype, prediction.shape) == (torch.uint8, (2, 40, 50))
    assert confusion.counts.sum() == 2 * 40 * 50 - 50
    assert confusion.counts[0].tolist() == torch.bincount(prediction[label == 0].long(), minlength=3).tolist()


def test_evaluation_leaves_the_net_as_it_is():
    net, (image, label) = tiny_net(), tiny_batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate_step(net, image, label, ConfusionMatrix(3))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_evaluation_refuses_a_label_outside_the_classes():
    net, (image, label) = tiny_net(), tiny_batch()
    label[0, 0, 0] = 11
    with pytest.raises(ValueError, match=r"label holds class id \[11\]"):
        evaluate_step(net, image, label, ConfusionMatrix(3))
