"""Charts: bars as long as the shares they stand for, and a curve that rises where the mIoU rises."""

import numpy as np
import pytest

from pipeline.evaluation import charts

TRAIN, VAL = (np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) for color in charts.SERIES)


def widths(picture: charts.Image, color: charts.Image) -> list[int]:
    """Lengths in pixels of the longest run of a colour in each bar, from top to bottom."""
    rows = (picture == color).all(axis=2).sum(axis=1)
    inside = rows > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(int)))
    return [int(rows[start:end].max()) for start, end in zip(edges[::2], edges[1::2], strict=True) if end - start > 8]


def test_bars_are_as_long_as_the_shares_of_the_classes_the_most_frequent_first() -> None:
    counts = {"train": ((100, 800, 400), (3, 9, 8)), "val": ((10, 80, 10), (1, 2, 1))}
    picture = charts.class_histogram(counts, ["car", "road", "tree"])
    train, val = (widths(picture[60:], color.astype(np.uint8)) for color in (TRAIN, VAL))
    assert [length / train[0] for length in train] == pytest.approx([1, 0.5, 0.125], abs=0.02)
    assert [length / val[0] for length in val] == pytest.approx([1, 0.125, 0.125], abs=0.02)


@pytest.mark.parametrize("num_classes", [2, 19, 150])
def test_a_histogram_grows_with_the_classes_and_takes_those_without_a_pixel(num_classes: int) -> None:
    nothing = (0,) * num_classes
    picture = charts.class_histogram({"train": (nothing, nothing), "val": (nothing, nothing)}, ["$a$ 道路"] * num_classes)
    assert picture.dtype == np.uint8
    assert 46 * num_classes < picture.shape[0] < 46 * num_classes + 100


@pytest.mark.filterwarnings("error")
def test_the_bars_of_a_score_are_as_long_as_the_iou_the_best_first() -> None:
    iou, intervals = [0.4, float("nan"), 0.8], [(0.3, 0.5), None, (0.6, 0.9)]
    picture = charts.class_scores(iou, intervals, ["$a$ 道路", "nowhere", "road"], 0.95)
    best, other = widths(picture[40:], VAL.astype(np.uint8))
    assert other / best == pytest.approx(0.5, abs=0.1), "the whisker hides a part of the bar"
    assert charts.class_scores([float("nan")], [None], ["nowhere"], 0.95).any()


@pytest.mark.filterwarnings("error")
def test_the_reliability_of_a_network_that_boasts_lies_below_the_diagonal() -> None:
    bins = np.array([[0.1, np.nan, 0.9], [0.1, np.nan, 0.3], [0.5, 0.0, 0.5]])
    picture = charts.reliability(bins, 0.3)
    assert picture.shape == (560, 520, 3)
    line = np.argwhere((picture[:400] == TRAIN).all(axis=2))
    assert line[line[:, 1] > 400, 0].min() > 150, "30 % right where it says 90 %"


@pytest.mark.filterwarnings("error")
def test_the_curve_of_one_validation_and_of_many() -> None:
    many = [(step, 2.0 / step) for step in range(1, 200)]
    picture = charts.learning_curve(many, [(step, step / 200) for step in range(20, 200, 20)])
    assert picture.shape == (420, 1000, 3)
    blue = np.argwhere((picture == TRAIN).all(axis=2))
    left, right = blue[blue[:, 1] < 300, 0].mean(), blue[(blue[:, 1] > 700) & (blue[:, 1] < 850), 0].mean()
    assert left > right + 100, "the mIoU rises: its row is smaller at the right"
    assert charts.learning_curve([], [(10, 0.5)]).any()


@pytest.mark.filterwarnings("error")
def test_the_settings_of_a_search_have_a_panel_each_with_every_trial() -> None:
    points = {
        "train.learning_rate": [(0.01, 0.1), (0.1, 0.2), (0.05, 0.9)],
        "data.crop_size": [([97, 129], 0.1), (129, 0.2), (129, 0.9)],
        "model.recurrence": [(1, 0.1), (2, 0.2), (3, 0.9)],
        "$loss$": [("a", 0.1), ("b", 0.2), ("a", 0.9)],
    }
    picture = charts.search_settings(points, ["train.learning_rate"], {"model.recurrence": "  (60 %)"}, 120)
    assert picture.shape == (600, 1020, 3)
    front, back = ((picture == np.array(color)).all(axis=2).sum() for color in (TRAIN, VAL))
    assert 200 < front < 1000, "the best of each panel"
    assert back > 50, "the others"
    assert charts.search_settings({"seed": [(1, 0.5)]}, [], {}, 10).any()


@pytest.mark.filterwarnings("error")
def test_the_curves_of_a_search_show_every_trial_and_the_best_in_front() -> None:
    curves = {f"{number:04d}": [(60, 0.1 * number), (120, 0.1 * number + 0.1)] for number in range(9)} | {"0009": [(60, 0.0)]}
    picture = charts.search_curves(curves, (60, 120), "0008")
    assert picture.shape == (480, 1000, 3)
    front, back = ((picture == np.array(color)).all(axis=2).sum() for color in (TRAIN, VAL))
    assert back > front > 500
    assert charts.search_curves({"0000": [(10, 0.5)]}, (), "0000").any()
