"""Dice and Lovasz losses against their definitions."""

import itertools

import pytest
import torch

from ccnet.losses import dice, lovasz_softmax


def example():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=generator)
    label = torch.randint(0, 3, (3, 5, 6), generator=generator)  # class 3 is absent
    label[0, :2] = 255
    label[2] = 255
    return logits, label


def over_images_and_classes(loss, logits, label):
    """Sum over images of the mean of `loss` over the classes present, and the number of images with a valid pixel."""
    total, count = 0.0, 0
    for scores, truth in zip(logits, label, strict=True):
        valid = truth != 255
        p = scores.softmax(0)[:, valid]
        present = truth[valid].unique().tolist()
        if present:
            total += sum(loss(p[k], truth[valid] == k) for k in present) / len(present)
            count += 1
    return total, count


def naive_dice(p, g):
    return 1 - 2 * (p * g).sum() / (p.square().sum() + g.sum())


def jaccard_loss(wrong, g):
    """1 - IoU of a prediction that is wrong at exactly the pixels `wrong`."""
    prediction = g ^ wrong
    return 1 - (prediction & g).sum().double() / (prediction | g).sum()


def naive_lovasz(p, g):
    """Sum over pixels, by falling error, of the error times what the pixel adds to the loss of the pixels before it."""
    errors = (g.double() - p).abs()
    total, wrong = 0.0, torch.zeros_like(g)
    for pixel in errors.argsort(descending=True):
        before = jaccard_loss(wrong, g)
        wrong[pixel] = True
        total = total + errors[pixel] * (jaccard_loss(wrong, g) - before)
    return total


@pytest.mark.parametrize(("loss", "naive"), [(dice, naive_dice), (lovasz_softmax, naive_lovasz)])
def test_equals_the_definition(loss, naive, within):
    logits, label = example()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    total, count = loss(ours, label)
    expected, expected_count = over_images_and_classes(naive, theirs, label)
    assert count == expected_count == 2
    within(total, expected, 1e-9)
    total.backward()
    expected.backward()
    within(ours.grad, theirs.grad, 1e-9)


def test_lovasz_of_a_certain_prediction_is_its_jaccard_loss():
    for prediction in itertools.product([0, 1], repeat=4):
        predicted, label = torch.tensor(prediction), torch.tensor([0, 0, 1, 1])
        logits = 100.0 * torch.stack([1 - predicted, predicted]).view(1, 2, 1, 4)
        total, _ = lovasz_softmax(logits, label.view(1, 1, 4))
        expected = sum(1 - ((predicted == k) & (label == k)).sum() / ((predicted == k) | (label == k)).sum() for k in (0, 1)) / 2
        torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("loss", [dice, lovasz_softmax])
def test_a_perfect_prediction_costs_nothing(loss):
    label = torch.randint(0, 3, (2, 4, 4))
    logits = 100.0 * torch.nn.functional.one_hot(label, 3).permute(0, 3, 1, 2)
    total, count = loss(logits, label)
    assert (total.item(), count.item()) == (pytest.approx(0.0, abs=1e-6), 2.0)


@pytest.mark.parametrize("loss", [dice, lovasz_softmax])
def test_all_pixels_ignored_give_zero_and_zero_gradients(loss):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    total, count = loss(logits, torch.full((2, 7, 7), 255, dtype=torch.uint8))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_images_count_alike_however_they_are_shared_out(within):
    logits, label = example()
    for loss in (dice, lovasz_softmax):
        parts = [loss(logits[rows], label[rows]) for rows in (slice(0, 1), slice(1, 3))]
        whole = loss(logits, label)
        for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
            within(sum(part), expected, 1e-12)
