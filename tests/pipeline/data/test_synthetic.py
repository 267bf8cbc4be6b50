"""The generated data set: deterministic, balanced, and labelled by a cue that only passes of attention reach."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ccnet import build_ccnet
from pipeline.data import synthetic
from pipeline.data.synthetic import DISC, LAMP, NAMES, SQUARE, VAL_START, Shape, draw, render, sample, split_index

indices = st.integers(0, 2 * VAL_START)
sizes = st.sampled_from([33, 65, 97])


@given(indices, st.integers(0, 2**32 - 1), sizes)
def test_a_sample_is_a_pure_function(index: int, seed: int, size: int) -> None:
    image, label = sample(index, seed, size)
    again, label_again = sample(index, seed, size)
    assert image.shape == (size, size, 3)
    assert label.shape == (size, size)
    assert image.dtype == label.dtype == np.uint8
    assert np.array_equal(image, again)
    assert np.array_equal(label, label_again)


@given(indices, sizes)
def test_the_cue_changes_the_labels_of_shapes_whose_pixels_stay(index: int, size: int) -> None:
    scene = draw(index, 0, size)
    image, label = render(scene, index, 0, size)
    other_image, other_label = render(replace(scene, warm=not scene.warm), index, 0, size)
    shapes, lamp = np.isin(label, (DISC, DISC + 1, SQUARE, SQUARE + 1)), label == LAMP
    assert np.array_equal(image[~lamp], other_image[~lamp])
    assert not np.array_equal(image[lamp], other_image[lamp])
    assert np.all(label[shapes] != other_label[shapes])
    assert np.array_equal(label[~shapes], other_label[~shapes])


@given(indices, sizes)
def test_lamp_and_shapes_lie_in_cells_with_a_gap_behind_those_of_the_lamp(index: int, size: int) -> None:
    scene = draw(index, 0, size)
    top, left, cell = scene.lamp
    assert 6 <= len(scene.shapes) <= 7
    assert {shape.kind for shape in scene.shapes} == {DISC, SQUARE}
    for shape in scene.shapes:
        for corner, start in ((shape.top, top), (shape.left, left)):
            from_lamp = corner - start if start == 0 else start + cell - corner - shape.side  # from the lamp's outer edge
            assert from_lamp + shape.side <= cell or size - 2 * cell <= from_lamp <= size - shape.side
    assert any(crosses(shape, scene.lamp) for shape in scene.shapes)
    assert not all(crosses(shape, scene.lamp) for shape in scene.shapes)


def crosses(shape: Shape, lamp: tuple[int, int, int]) -> bool:
    """Whether the shape lies in the lamp's rows or columns."""
    top, left, cell = lamp
    return top <= shape.top < top + cell or left <= shape.left < left + cell


@pytest.mark.parametrize(("recurrence", "crossing", "other"), [(0, False, False), (1, True, False), (2, True, True)])
def test_the_small_network_sees_the_lamp_from_a_shape_exactly_where_r_passes_reach(
    recurrence: int, crossing: bool, other: bool
) -> None:
    """With random weights: whether the scores of a shape's pixels depend on the lamp's."""
    torch.manual_seed(0)
    net = build_ccnet(backbone="small", num_classes=len(NAMES), recurrence=recurrence, gamma_init=1.0).double().eval()
    scene = next(scene for scene in map(partial(draw, seed=0, size=129), range(50)) if len(scene.shapes) == 7)
    image = torch.from_numpy(render(scene, 0, 0, 129)[0]).permute(2, 0, 1)[None]
    x = net.normalise(image).requires_grad_()
    scores = F.interpolate(net.scores(x).logits, size=(129, 129), mode="bilinear", align_corners=True)
    top, left, cell = scene.lamp
    for shape in scene.shapes:
        pixels = scores[:, :, shape.top : shape.top + shape.side, shape.left : shape.left + shape.side]
        (gradient,) = torch.autograd.grad(pixels.square().sum(), x, retain_graph=True)
        seen = bool(gradient[:, :, top : top + cell, left : left + cell].any())
        assert seen == (crossing if crosses(shape, scene.lamp) else other), shape


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_are_balanced(split: str) -> None:
    counts = np.array([np.bincount(sample(split_index(split, i), 0, 65)[1].ravel(), minlength=len(NAMES)) for i in range(200)])
    shares, present = counts.sum(0) / counts.sum(), (counts > 0).mean(0)
    assert shares[synthetic.BACKGROUND] < 0.85
    assert shares.min() > 0.02
    assert present.min() >= 0.2


def test_splits_never_meet() -> None:
    assert split_index("train", 5) == 5
    assert split_index("val", 0) == VAL_START
    train, val = sample(split_index("train", 3), 0, 65)[0], sample(split_index("val", 3), 0, 65)[0]
    assert not np.array_equal(train, val)


def test_golden_sample() -> None:
    """Pins the pictures. If a change of them is intended, raise synthetic.VERSION."""
    image, label = sample(0, 0, 65)
    assert synthetic.VERSION == 2
    assert np.bincount(label.ravel(), minlength=6).tolist() == GOLDEN_COUNTS
    assert image[32, 32].tolist() == GOLDEN_PIXEL


GOLDEN_COUNTS = [3407, 209, 0, 465, 0, 144]
GOLDEN_PIXEL = [66, 76, 62]
