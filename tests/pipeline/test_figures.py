"""Pictures: what each pixel says, and sizes that people can read."""

import numpy as np
import pytest

from pipeline import figures

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
LABEL = np.array([[0, 1], [2, 255]], np.uint8)


def test_classes_take_their_colours_and_ignored_is_black() -> None:
    assert figures.colorize(LABEL, COLORS).tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]]


def test_overlay_blends_and_leaves_ignored_pixels_as_they_are() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    assert figures.overlay(image, LABEL, COLORS, alpha=0.5).tolist() == [
        [[178, 50, 50], [50, 178, 50]],
        [[50, 50, 178], [100, 100, 100]],
    ]


def test_error_is_red_ignored_is_grey_and_right_is_the_dimmed_image() -> None:
    image = np.full((1, 3, 3), 200, np.uint8)
    truth, prediction = np.array([[0, 1, 255]], np.uint8), np.array([[0, 0, 0]], np.uint8)
    assert figures.error_map(image, truth, prediction)[0].tolist() == [[150, 150, 150], list(figures.WRONG), list(figures.GREY)]


def test_panel_enlarges_small_pictures_by_a_whole_factor() -> None:
    truth = np.zeros((65, 65), np.uint8)
    picture = figures.panel([(figures.colorize(truth, COLORS), truth, truth)] * 2, COLORS, ["a", "b", "c"])
    side = 5 * 65
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 4 * (side + figures.GAP) + figures.GAP
    first = picture[:, figures.GAP : figures.GAP + side]
    assert (first == (255, 0, 0)).all(axis=(1, 2)).sum() == 2 * side


def test_panel_shrinks_large_pictures_and_takes_different_sizes() -> None:
    samples = [
        (np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.uint8), np.ones((h, w), np.uint8))
        for h, w in ((512, 2048), (256, 512))
    ]
    assert figures.panel(samples, COLORS, ["a", "b", "c"]).shape[1] == 4 * (512 + figures.GAP) + figures.GAP


def test_panel_of_an_image_without_labels_is_drawn() -> None:
    ignored = np.full((8, 8), 255, np.uint8)
    assert figures.panel([(np.zeros((8, 8, 3), np.uint8), ignored, ignored)], COLORS, ["a", "b", "c"]).size > 0


@pytest.mark.parametrize("num_classes", [2, 6, 11, 19])
def test_confusion_picture_grows_with_the_classes(num_classes: int) -> None:
    counts = np.zeros((num_classes, num_classes), np.int64)
    counts[0, 0], counts[0, 1] = 3, 1
    picture = figures.confusion_picture(counts, [f"class {i}" for i in range(num_classes)])
    assert picture.dtype == np.uint8
    assert min(picture.shape[:2]) > 46 * num_classes
    assert max(picture.shape[:2]) < 46 * num_classes + 200


def test_learning_curve_draws_every_line() -> None:
    picture = figures.learning_curve({"R = 2": ([0, 10], [0.1, 0.5]), "R = 0": ([0, 10], [0.1, 0.3])}, "mIoU")
    for line in figures.LINES[:2]:
        assert (picture == tuple(bytes.fromhex(line[1:]))).all(axis=2).any()
