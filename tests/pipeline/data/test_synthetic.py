"""The generated data set: deterministic, balanced, and labelled by a cue outside the rows and columns of the shapes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import synthetic
from pipeline.data.synthetic import DISC, LAMP, NAMES, SQUARE, VAL_START, draw, render, sample, split_index

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
def test_the_lamp_shares_no_row_and_no_column_with_a_shape(index: int, size: int) -> None:
    label = sample(index, 0, size)[1]
    shapes, lamp = np.isin(label, (DISC, DISC + 1, SQUARE, SQUARE + 1)), label == LAMP
    assert shapes.any()
    assert lamp.any()
    assert not np.any(shapes.any(0) & lamp.any(0))
    assert not np.any(shapes.any(1) & lamp.any(1))


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_are_balanced(split: str) -> None:
    counts = np.array([np.bincount(sample(split_index(split, i), 0, 65)[1].ravel(), minlength=len(NAMES)) for i in range(200)])
    shares, present = counts.sum(0) / counts.sum(), (counts > 0).mean(0)
    assert shares[synthetic.BACKGROUND] < 0.6
    assert shares.min() > 0.03
    assert present.min() >= 0.2


def test_splits_never_meet() -> None:
    assert split_index("train", 5) == 5
    assert split_index("val", 0) == VAL_START
    train, val = sample(split_index("train", 3), 0, 65)[0], sample(split_index("val", 3), 0, 65)[0]
    assert not np.array_equal(train, val)


def test_golden_sample() -> None:
    """Pins the pictures. If a change of them is intended, raise synthetic.VERSION."""
    image, label = sample(0, 0, 65)
    assert synthetic.VERSION == 1
    assert np.bincount(label.ravel(), minlength=6).tolist() == GOLDEN_COUNTS
    assert image[32, 32].tolist() == GOLDEN_PIXEL


GOLDEN_COUNTS = [2672, 873, 0, 484, 0, 196]
GOLDEN_PIXEL = [75, 148, 86]
