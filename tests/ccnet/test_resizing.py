"""Score maps and labels at another size."""

import torch
import torch.nn.functional as F

from ccnet.losses import resize_label, resize_logits


def test_enlarged_logits_equal_the_published_ones(golden, within):
    z = golden("twohead_ce")
    within(resize_logits(z["main"].double(), (33, 49)), z["up_main"], 1e-7)  # stored as float32


def test_logits_of_that_size_are_not_copied():
    logits = torch.randn(1, 2, 5, 6)
    assert resize_logits(logits, (5, 6)) is logits


def test_from_8k_plus_1_the_label_is_every_8th_pixel():
    label = torch.randint(0, 19, (2, 33, 49), dtype=torch.uint8)
    assert torch.equal(resize_label(label, (5, 7)), label[:, ::8, ::8])


def test_half_way_the_label_is_the_next_pixel():
    assert resize_label(torch.arange(4).view(1, 1, 4), (1, 3)).tolist() == [[[0, 2, 3]]]


def test_without_aligned_corners_a_cell_covers_eight_pixels():
    """8k pixels and k cells: each cell's score lies between the 4th and 5th of its 8 pixels, and so does its label."""
    label = torch.randint(0, 19, (2, 32, 48), dtype=torch.uint8)
    assert torch.equal(resize_label(label, (4, 6), align_corners=False), label[:, 4::8, 4::8])
    columns = torch.arange(6.0).expand(1, 1, 4, 6)
    enlarged = resize_logits(columns, (32, 48), align_corners=False)[0, 0, 0]
    assert ((enlarged[3::8] + enlarged[4::8]) / 2).tolist() == [0.03125, 1, 2, 3, 4, 4.96875]
    assert torch.equal(enlarged, F.interpolate(columns, (32, 48), mode="bilinear", align_corners=False)[0, 0, 0])
