"""The average of the weights against its definition; restored from its state dict it resumes bit for bit."""

import copy

import pytest
import torch
from torch import nn

from ccnet.ema import Average


def net_and_weights(num_steps):
    """A net, and its state dict after each of `num_steps` steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    net.register_buffer("wide", torch.randn(2, dtype=torch.float64))
    start = copy.deepcopy(net)
    states = []
    for step in range(num_steps):
        for value in net.state_dict().values():
            value.copy_(torch.randn_like(value) if value.is_floating_point() else torch.tensor(step + 1))
        states.append(copy.deepcopy(net.state_dict()))
    return start, states


def test_equals_the_definition():
    net, states = net_and_weights(12)
    average = Average(net, 0.5)
    expected = {name: value.to(torch.float64, copy=True) for name, value in net.state_dict().items()}
    decays = []
    for n, state in enumerate(states):
        net.load_state_dict(state)
        average.update(net, n)
        decays.append(min(0.5, (1 + n) / (10 + n)))
        expected = {name: decays[-1] * value + (1 - decays[-1]) * state[name] for name, value in expected.items()}
    assert decays[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert decays[8:] == [0.5] * 4
    for name, value in average.net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name].to(value.dtype))
    assert average.net[1].num_batches_tracked == 12


def test_restored_from_its_state_dict_it_resumes_bit_for_bit():
    net, states = net_and_weights(6)
    uninterrupted, average = Average(net, 0.2), Average(net, 0.2)
    for n, state in enumerate(states):
        net.load_state_dict(state)
        uninterrupted.update(net, n)
        if n == 3:
            saved = average.net.state_dict()
            average = Average(net, 0.2)
            average.net.load_state_dict(saved)
        average.update(net, n)
    assert all(torch.equal(value, uninterrupted.net.state_dict()[name]) for name, value in average.net.state_dict().items())


def test_the_average_is_a_separate_net_for_evaluation():
    net = nn.Sequential(nn.Linear(3, 2)).train()
    average = Average(net, 0.9)
    nn.init.zeros_(net[0].weight)
    assert not average.net.training
    assert not any(parameter.requires_grad for parameter in average.net.parameters())
    assert average.net[0].weight.abs().min() > 0
    assert net.training
    assert net[0].weight.requires_grad


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by torch when dynamo is imported
def test_a_compiled_net_is_the_same_net():
    net, states = net_and_weights(1)
    plain, compiled = Average(net, 0.9), Average(net, 0.9)
    net.load_state_dict(states[0])
    plain.update(net, 0)
    compiled.update(torch.compile(net), 0)
    assert all(torch.equal(value, compiled.net.state_dict()[name]) for name, value in plain.net.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 1.0, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay = .*: must be above 0 and below 1"):
        Average(nn.Linear(1, 1), decay)
