"""Attention maps against dense [HW, HW] matrices and against properties known beforehand."""

import pytest
import torch
from torch import Tensor

from ccnet import RCCAHead, build_ccnet
from ccnet.maps import Pass, attention_map, attention_maps, attention_passes


def random_head(recurrence: int) -> RCCAHead:
    torch.manual_seed(0)
    head = RCCAHead(64, 16, 3, recurrence).double()
    torch.nn.init.constant_(head.attention.gamma, 0.7)
    return head


def random_features() -> Tensor:
    return torch.randn(2, 64, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def dense(one: Pass) -> Tensor:
    """float[B, HW, HW]: row u is the attention of pixel u, entry by entry from the definition of (column, row)."""
    column, row = one
    batch, height, width, _ = row.shape
    matrix = torch.zeros(batch, height, width, height, width, dtype=row.dtype)
    for h in range(height):
        for w in range(width):
            matrix[:, h, w, :, w] += column[:, h, w]
            matrix[:, h, w, h, :] += row[:, h, w]
    return matrix.view(batch, height * width, height * width)


@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_composed_map_is_the_pixels_row_of_the_product_of_dense_matrices(recurrence, within):
    passes = attention_passes(random_head(recurrence), random_features())
    product = dense(passes[0])
    for one in passes[1:]:
        product = dense(one) @ product
    for h in range(4):
        for w in range(5):
            within(attention_map(passes, (h, w)), product[:, h * 5 + w].view(2, 4, 5), 1e-12)


def test_each_pass_attends_to_the_output_of_the_pass_before():
    head, features = random_head(recurrence=2), random_features()
    first, second = attention_passes(head, features)
    with torch.no_grad():
        reduced = head.conva(features)
        for (column, row), x in ((first, reduced), (second, head.attention(reduced))):
            expected_column, expected_row = head.attention.attention(x)
            assert torch.equal(column, expected_column)
            assert torch.equal(row, expected_row)


def test_one_pass_is_zero_outside_the_cross_and_two_cover_every_pixel():
    passes = attention_passes(random_head(recurrence=2), random_features())
    cross = torch.zeros(2, 4, 5, dtype=torch.bool)
    cross[:, 1, :] = cross[:, :, 2] = True
    for one in passes:
        assert torch.equal(attention_map([one], (1, 2)) > 0, cross)
    assert (attention_map(passes, (1, 2)) > 0).all()


def test_two_passes_of_equal_weights_share_as_paths_are_counted():
    # In a 2 x 2 map with equal weights a pixel gives a third each to itself and to its two neighbours. There are 3 paths of two
    # passes to itself, 2 to each neighbour and 2 to the far corner; each path carries a ninth.
    third = torch.full((1, 2, 2, 2), 1 / 3, dtype=torch.float64)
    others = third * (1 - torch.eye(2, dtype=torch.float64)[:, None, :])  # column[h, w, j] is 0 at j = h
    expected = torch.tensor([[[3, 2], [2, 2]]], dtype=torch.float64) / 9
    torch.testing.assert_close(attention_map([(others, third)] * 2, (0, 0)), expected)


def test_maps_of_an_image_have_the_size_of_its_logits_and_each_sums_to_one():
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=2)
    image = torch.randint(0, 256, (2, 3, 41, 57), dtype=torch.uint8)
    maps = attention_maps(net, image, (40, 20))
    assert maps.cell == (5, 2)  # pixel 20 lies midway between cells 2 and 3: round() takes the even one
    assert len(maps.passes) == 2
    for one in (*maps.passes, maps.composed):
        assert one.shape == net(image).logits[:, 0].shape == (2, 6, 8)
        torch.testing.assert_close(one.sum((1, 2)), torch.ones(2))
    assert (maps.passes[0][:, 5, :] > 0).all()
    assert (maps.passes[0][:, :5, 3:] == 0).all()


def test_with_one_pass_the_composed_map_is_its_cross():
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=1)
    maps = attention_maps(net, torch.randint(0, 256, (1, 3, 33, 33), dtype=torch.uint8), (0, 32))
    assert torch.equal(maps.composed, maps.passes[0])


def test_attention_maps_change_neither_weights_nor_running_statistics():
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=2).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    maps = attention_maps(net, torch.randint(0, 256, (1, 3, 33, 33), dtype=torch.uint8), (0, 0))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not maps.composed.requires_grad


def test_a_net_without_attention_has_nothing_to_show():
    with pytest.raises(ValueError, match="recurrence = 0: the head has no attention to show"):
        attention_passes(random_head(recurrence=0), random_features())


@pytest.mark.parametrize("pixel", [(-1, 0), (33, 0), (0, 41)])
def test_a_pixel_outside_the_image_is_an_error_that_names_the_range(pixel):
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=2)
    with pytest.raises(ValueError, match="row 0 to 32 and column 0 to 40"):
        attention_maps(net, torch.zeros(1, 3, 33, 41, dtype=torch.uint8), pixel)


def test_a_pixel_outside_the_map_is_an_error_that_names_the_range():
    passes = attention_passes(random_head(recurrence=1), random_features())
    with pytest.raises(ValueError, match=r"pixel = \(4, 0\): must be .* row 0 to 3 and column 0 to 4"):
        attention_map(passes, (4, 0))
