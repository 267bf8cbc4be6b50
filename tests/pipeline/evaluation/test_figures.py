"""Pictures: the colour of each pixel, and sizes that people can read."""

import numpy as np
import pytest

from pipeline.evaluation import charts, figures

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


CROSS = np.zeros((3, 3))
CROSS[1, :] = CROSS[:, 1] = 0.2


def test_a_training_batch_shows_each_crop_with_its_classes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    label = np.zeros((20, 30), np.uint8)
    label[:, 10:20], label[:, 20:] = 2, 255
    picture = figures.training_batch([(image, label)] * 3, COLORS, ["a", "b", "c"])
    gap, factor = figures.GAP, figures.TILE // 30
    assert picture.shape[1] == 3 * (30 * factor + gap) + gap
    tiles = [
        picture[44 : 44 + 20 * factor, gap + i * (30 * factor + gap) :][:, : 30 * factor][::factor, ::factor] for i in range(3)
    ]
    for tile, expected in zip(
        tiles, (image, figures.overlay(image, label, COLORS), figures.colorize(label, COLORS)), strict=True
    ):
        np.testing.assert_array_equal(tile, expected)


def test_attention_panel_has_a_picture_per_pass_and_one_of_all_passes() -> None:
    image = np.full((17, 17, 3), 200, np.uint8)
    for num_passes, num_pictures in ((1, 2), (2, 4), (3, 5)):  # one pass has no picture of all passes
        picture = figures.attention_panel([(image, (8, 8), [CROSS] * (num_passes + 1))] * 2)
        assert picture.dtype == np.uint8
        assert picture.shape[1] == num_pictures * (18 * 17 + figures.GAP) + figures.GAP


def test_attention_panel_shows_the_map_over_the_dimmed_image_by_nearest_cell() -> None:
    image = np.full((17, 17, 3), 200, np.uint8)
    picture = figures.attention_panel([(image, (8, 8), [CROSS, CROSS])])
    left, top, factor = 2 * figures.GAP + 18 * 17, 44, 18
    heat = picture[top : top + 17 * factor : factor, left : left + 17 * factor : factor]
    # The cells' centres are the pixels 0, 8 and 16: pixels 5 to 11 are nearest to the middle one.
    assert (heat[0, 5:12] == (255, 224, 102)).all()
    assert (heat[5:12, 0] == (255, 224, 102)).all()
    assert (heat[0, :5] == 70).all()
    assert (heat[0, 12:] == 70).all()


def test_attention_panel_rings_the_pixel_in_every_picture() -> None:
    image = np.full((300, 300, 3), 200, np.uint8)
    picture = figures.attention_panel([(image, (50, 100), [CROSS] * 3)])
    for i in range(4):
        left, top = figures.GAP + i * (300 + figures.GAP), 44
        around = (picture[top : top + 300, left : left + 300] == 255).all(axis=2)
        rows, columns = around.nonzero()
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (39, 61, 89, 111)


def test_attention_panel_takes_images_of_different_sizes() -> None:
    samples = [(np.zeros((h, w, 3), np.uint8), (0, w - 1), [CROSS] * 3) for h, w in ((512, 2048), (256, 512))]
    assert figures.attention_panel(samples).shape[1] == 4 * (512 + figures.GAP) + figures.GAP


def test_the_notable_pixel_is_the_rarest_classes_nearest_to_its_centre() -> None:
    label = np.zeros((5, 7), np.uint8)
    label[0, :6] = 255
    label[1:4, 2:5] = 1
    label[2, 3] = 255  # the centre itself is ignored: its neighbours are equally near, the first row wins
    assert figures.notable_pixel(label) == (1, 3)


def test_of_equally_rare_classes_the_lowest_is_shown() -> None:
    assert figures.notable_pixel(np.array([[3, 2], [2, 3]], np.uint8)) == (0, 1)


def test_each_rank_takes_a_commoner_class_and_then_begins_again() -> None:
    label = np.array([[7, 1, 1, 0, 0, 0]], np.uint8)
    assert [figures.notable_pixel(label, rank)[1] for rank in range(4)] == [0, 1, 4, 0]


def test_the_notable_pixel_of_an_image_without_labels_is_its_middle() -> None:
    assert figures.notable_pixel(np.full((5, 9), 255, np.uint8)) == (2, 4)


@pytest.mark.parametrize("num_classes", [2, 6, 11, 19])
def test_confusion_picture_grows_with_the_classes(num_classes: int) -> None:
    counts = np.zeros((num_classes, num_classes), np.int64)
    counts[0, 0], counts[0, 1] = 3, 1
    picture = charts.confusion_picture(counts, [f"class {i}" for i in range(num_classes)])
    assert picture.dtype == np.uint8
    assert min(picture.shape[:2]) > 46 * num_classes
    assert max(picture.shape[:2]) < 46 * num_classes + 200


@pytest.mark.parametrize("name", ["$\\frac$", "a$b$c", "道路", "🚗", "طريق", "\\", "%s {x}", "x" * 300], ids=ascii)
def test_a_name_of_a_class_is_drawn_as_text_and_cut(name: str) -> None:
    """Dollars mean mathematics to matplotlib; a script that its font lacks must not be a warning at each validation."""
    counts, label = np.eye(2, dtype=np.int64), np.zeros((9, 9), np.uint8)
    assert max(charts.confusion_picture(counts, [name, "road"]).shape) < 600
    image = np.zeros((9, 9, 3), np.uint8)
    assert figures.panel([(image, label, label)], [(0, 0, 0), (9, 9, 9)], [name, "road"]).any()
