"""Layers over the global batch, two real gloo workers against one process with the whole batch; frozen batch norm."""

import pytest
import torch
from torch import nn

from ccnet import SampleDropout2d, SyncedBatchNorm2d, build_ccnet, synchronise_batch_norm
from ccnet.layers import FrozenBatchNorm2d, freeze_batch_norm, global_rows, use_onednn


@pytest.mark.parametrize("turn", [0, 1])
def test_two_workers_normalise_like_one_batch(workers, within, turn):
    alone, both = workers[0]["batch_norm"], [worker["batch_norm"] for worker in workers[1]]
    for name in (f"y{turn}", f"x_grad{turn}"):
        within(torch.cat([worker[name] for worker in both]), alone[name], 1e-10)
    for name in (f"weight_grad{turn}", f"bias_grad{turn}"):
        within(both[0][name] + both[1][name], alone[name], 1e-10)


def test_two_workers_keep_the_running_statistics_of_one_batch(workers, within):
    alone = workers[0]["batch_norm"]
    for worker in workers[1]:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            within(worker["batch_norm"][f"state/0.{name}"], alone[f"state/0.{name}"], 1e-10)
    assert torch.equal(workers[1][0]["batch_norm"]["state/0.running_var"], workers[1][1]["batch_norm"]["state/0.running_var"])


def test_two_workers_drop_the_channels_of_one_batch(workers):
    alone = workers[0]["dropout"]["y"]
    assert torch.equal(torch.cat([worker["dropout"]["y"] for worker in workers[1]]), alone)
    assert 0 < (alone == 0).sum() < alone.numel()


def test_alone_synced_batch_norm_is_batch_norm():
    x = torch.randn(2, 3, 4, 4)
    ours, theirs = SyncedBatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_synchronise_batch_norm_keeps_parameters_buffers_names_and_mode():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=0.3))).eval()
    before = dict(net.named_parameters()) | dict(net.named_buffers())
    assert synchronise_batch_norm(net, "cpu") is net
    after = dict(net.named_parameters()) | dict(net.named_buffers())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    norm = net[1][0]
    assert (type(norm), norm.eps, norm.momentum, norm.training) == (SyncedBatchNorm2d, 1e-3, 0.3, False)


def test_synchronise_batch_norm_uses_torchs_own_on_a_gpu():
    net = synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(4)), "cuda")
    assert type(net[0]) is nn.SyncBatchNorm


def test_batch_norm_without_running_statistics_cannot_be_synchronised():
    with pytest.raises(ValueError, match="only affine batch norm"):
        synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), "cpu")


def test_dropout_drops_whole_channels_and_keeps_the_mean():
    torch.manual_seed(0)
    y = SampleDropout2d(0.25)(torch.ones(8, 500, 2, 3))
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)


def test_dropout_is_the_identity_in_evaluation():
    x = torch.randn(2, 3, 4, 5)
    assert SampleDropout2d(0.5).eval()(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_of_everything_or_less_than_nothing_is_an_error(p):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        SampleDropout2d(p)


def test_parts_of_a_global_batch_drop_the_channels_of_the_whole():
    dropout, x = SampleDropout2d(0.4), torch.ones(5, 50, 2, 2)
    parts = []
    for first, end in ((0, 5), (0, 2), (2, 3), (3, 5)):
        torch.manual_seed(2)
        with global_rows(first, 5):
            parts.append(dropout(x[first:end]))
    assert torch.equal(torch.cat(parts[1:]), parts[0])
    torch.manual_seed(2)
    assert torch.equal(dropout(x), parts[0])


def test_rows_outside_the_global_batch_are_an_error():
    with global_rows(4, 5), pytest.raises(IndexError):
        SampleDropout2d(0.4)(torch.ones(2, 3, 2, 2))


def test_frozen_batch_norm_is_batch_norm_in_evaluation_whatever_the_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3, eps=1e-3))
    for value in (net[0].weight.data, net[0].running_mean, net[0].running_var):
        value.uniform_(0.5, 1.5)
    x = torch.randn(4, 3, 5, 5)
    expected, state = net.eval()(x), {name: value.clone() for name, value in net.state_dict().items()}
    assert freeze_batch_norm(net) is net
    assert torch.equal(net.train()(x), expected)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_a_state_dict_of_a_frozen_net_is_one_of_the_net_and_the_other_way_round():
    net, frozen = (build_ccnet(backbone="resnet18", num_classes=2, recurrence=1) for _ in range(2))
    freeze_batch_norm(frozen.backbone)
    frozen.load_state_dict(net.state_dict())
    net.load_state_dict(frozen.state_dict())
    kinds = {type(module) for module in frozen.backbone.modules()}
    assert (FrozenBatchNorm2d in kinds, nn.BatchNorm2d in kinds) == (True, False)
    assert type(frozen.head.conva[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_frozen_batch_norm_stays_frozen_where_the_rest_is_synchronised(device):
    net = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm2d(4))
    freeze_batch_norm(net[0])
    synchronise_batch_norm(net, device)
    assert (type(net[0][0]), type(net[1])) == (FrozenBatchNorm2d, SyncedBatchNorm2d if device == "cpu" else nn.SyncBatchNorm)
    assert type(freeze_batch_norm(net)[1]) is FrozenBatchNorm2d


def test_batch_norm_without_running_statistics_cannot_be_frozen():
    with pytest.raises(ValueError, match="only affine batch norm with running statistics can be frozen"):
        freeze_batch_norm(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)))


def test_one_thread_computes_1x1_convolutions_with_onednn_and_to_the_same_scores(within):
    torch.manual_seed(0)
    net = build_ccnet(backbone="resnet18", num_classes=3, recurrence=2, auxiliary=False).eval()
    image = torch.randint(0, 256, (1, 3, 193, 193), dtype=torch.uint8)

    def run():
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            scores = net(image).logits
        return scores, sum(event.name == "aten::_slow_conv2d_forward" for event in profile.events())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected, slow = run()
        use_onednn(net)
        scores, left = run()
    finally:
        torch.set_num_threads(threads)
    assert slow > 4, "torch has changed: this project may no longer need use_onednn"
    assert left == 4, "the attention's own two of each pass are no layers"
    within(scores, expected.double(), 1e-5)
