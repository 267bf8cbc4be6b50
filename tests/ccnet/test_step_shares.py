"""One training step with unequal shares of the global batch, and in several passes, equals that of one worker in one pass."""

import pytest
import torch

from ccnet import build_optimizer, train_step
from ccnet.losses import PUBLISHED, Objective, Ohem, mean
from ccnet.step import seed_step
from tests.ccnet.tiny import tiny_batch, tiny_net, trained

WEIGHTED = Objective(class_weights=(0.5, 1.0, 2.0, 0.1, 1.5))


def step_of(net, image, label, **options):
    optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
    return train_step(net, optimizer, image, label, learning_rate=0.1, seed=7, step=0, **options)


@pytest.mark.parametrize(
    "case",
    ["unequal", "unequal on every term", "unequal, clipped", "passes", "unequal passes", "fewer passes than images"],
)
def test_two_workers_train_like_one(case, workers, within):
    alone, both = workers[0][case], [worker[case] for worker in workers[1]]
    for worker in both:
        assert worker.keys() == alone.keys()
        for name, value in alone.items():
            within(worker[name], value, 1e-9)
    for name, value in both[0].items():
        assert torch.equal(value, both[1][name]), name
    assert alone["0/mean/loss"] != alone["2/mean/loss"]


@pytest.mark.parametrize("objective", [PUBLISHED, WEIGHTED], ids=["pixels", "class weights"])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_passes_have_the_loss_and_the_gradient_of_one_pass(micro_batch, objective, within):
    one = trained(5, frozen=True, objective=objective)
    several = trained(5, frozen=True, objective=objective, micro_batch=micro_batch)
    for name, value in one.items():
        within(several[name], value, 1e-9)


@pytest.mark.parametrize(("micro_batch", "sizes"), [(None, [5]), (5, [5]), (4, [2, 3]), (2, [1, 2, 2]), (1, [1] * 5)])
def test_no_pass_is_larger_than_the_micro_batch(micro_batch, sizes):
    net, (image, label) = tiny_net(), tiny_batch(5)
    seen = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    step_of(net, image, label, micro_batch=micro_batch)
    assert seen == sizes


def test_several_passes_exchange_the_gradient_once(workers):
    assert [worker["exchanges"]["num"] for worker in workers[1]] == [1, 1]


def test_the_rows_choose_the_dropout():
    net, (image, label) = tiny_net(), tiny_batch(5)
    dropped = []
    net.body[3].register_forward_hook(lambda _, inputs, output: dropped.append((output == 0).all(3).all(2)))  # [B, C]
    step_of(net, image, label)
    step_of(net, image[3:], label[3:], rows=(3, 5))
    step_of(net, image[3:], label[3:], rows=(1, 5))
    whole, own, other = dropped
    assert torch.equal(own, whole[3:])
    assert torch.equal(other, whole[1:3])
    assert not torch.equal(own, other)


def test_a_global_batch_without_valid_pixels_has_zero_gradients_in_any_number_of_passes():
    net, (image, label) = tiny_net(), tiny_batch(4)
    result = step_of(net, image, torch.full_like(label, 255), micro_batch=1, objective=WEIGHTED)
    assert (result.losses["loss"], result.gradient_norm, result.applied) == (0, 0, True)
    assert all((parameter.grad == 0).all() for parameter in net.parameters())


def test_mining_keeps_a_part_of_min_kept_in_each_pass():
    # A pass keeps 25 pixels of the full size, which rounds to none on every 8th row and column: OHEM warns of this.
    with pytest.warns(UserWarning, match="min_kept = 25: rounds to no pixel at all"):
        step_of(tiny_net(), *tiny_batch(4), micro_batch=1, objective=Objective(ohem=Ohem(min_kept=100)))


def test_micro_batches_of_nothing_are_an_error():
    with pytest.raises(ValueError, match="micro_batch = 0: must be at least 1 image, or None for one pass"):
        step_of(tiny_net(), *tiny_batch(4), micro_batch=0)


@pytest.mark.parametrize(("rows", "micro_batch"), [((6, 8), None), ((-1, 8), None), ((0, 9), 2)])
def test_rows_that_are_not_of_the_global_batch_are_an_error(rows, micro_batch):
    with pytest.raises(ValueError, match=rf"rows = \({rows[0]}, {rows[1]}\) with 4 images: must be"):
        step_of(tiny_net(), *tiny_batch(4), rows=rows, micro_batch=micro_batch)


def plain_step(net, optimizer, image, label, *, learning_rate, objective, seed, step):
    """The step without any of its options."""
    seed_step(seed, step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    net.train()
    optimizer.zero_grad()
    terms = objective.terms(net(image), label)
    loss = torch.stack([weight * mean(total, count) for weight, total, count in terms.values()]).sum()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_without_options_every_bit_is_that_of_the_plain_step():
    results = []
    for make_step in (plain_step, lambda *given, **options: train_step(*given, **options).losses["loss"]):
        net, (image, label) = tiny_net(embedding=True).float(), tiny_batch(3)
        optimizer = build_optimizer(net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
        objective = Objective(ohem=Ohem(thresh=0.3, min_kept=640), consistency_weight=0.7, dice_weight=0.3)
        found = [
            make_step(net, optimizer, image, label, learning_rate=0.1, objective=objective, seed=3, step=step)
            for step in range(3)
        ]
        momentum = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
        results.append([*found, *momentum, *net.state_dict().values()])
    assert all(torch.equal(ours, plain) for plain, ours in zip(*results, strict=True))
