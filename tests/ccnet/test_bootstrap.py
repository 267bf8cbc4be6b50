"""The interval over images: equal to that of a loop, and as wide as the variation by chance."""

import math

import pytest
import torch

from ccnet.bootstrap import bootstrap_differences, bootstrap_interval, bootstrap_intervals


def images(seed: int, num_images: int, num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersection and union int64[N, K] of images whose IoU varies around 1/2."""
    generator = torch.Generator().manual_seed(seed)
    union = torch.randint(50, 150, (num_images, num_classes), generator=generator)
    return (union * torch.rand(union.shape, generator=generator)).long(), union


def miou(intersection: torch.Tensor, union: torch.Tensor) -> float:
    return (intersection.sum(0).double() / union.sum(0)).nanmean().item()


def width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


def test_equals_a_loop_over_the_same_resamples():
    intersection, union = images(0, 7, num_classes=4)
    intersection[:, 3] = union[:, 3] = 0  # occurs nowhere
    intersection[1:, 2] = union[1:, 2] = 0  # occurs in the first image alone: not in every resample
    generator = torch.Generator().manual_seed(5)
    resamples = [torch.randint(7, (7,), generator=generator) for _ in range(300)]
    mious = torch.tensor([miou(intersection[drawn], union[drawn]) for drawn in resamples], dtype=torch.float64)
    expected = mious.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    found, by_class = bootstrap_intervals(intersection, union, num_resamples=300, level=0.9, seed=5)
    assert found == pytest.approx(tuple(expected), abs=1e-12)
    assert found == bootstrap_interval(intersection, union, num_resamples=300, level=0.9, seed=5)
    for k in range(3):
        ious = torch.tensor(
            [float(intersection[d, k].sum() / union[d, k].sum().double()) for d in resamples], dtype=torch.float64
        )
        bounds = ious.nanquantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        assert by_class[k] == pytest.approx(tuple(bounds), abs=1e-12)
    assert all(math.isnan(bound) for bound in by_class[3])


def test_one_image_leaves_nothing_to_chance():
    intersection, union = torch.tensor([[3, 1, 0]]), torch.tensor([[4, 2, 0]])
    assert bootstrap_interval(intersection, union) == (0.625, 0.625)


def test_it_covers_the_point_estimate_and_is_a_function_of_its_seed():
    intersection, union = images(0, 30)
    low, high = bootstrap_interval(intersection, union, seed=1)
    assert low < miou(intersection, union) < high
    assert bootstrap_interval(intersection, union, seed=1) == (low, high)
    assert bootstrap_interval(intersection, union, seed=2) != (low, high)


def test_sixteen_times_the_images_make_it_four_times_narrower():
    few, many = (width(bootstrap_interval(*images(0, num_images))) for num_images in (40, 640))
    assert few / many == pytest.approx(4, rel=0.3)


def test_a_higher_level_is_wider():
    narrow, wide = (width(bootstrap_interval(*images(0, 30), level=level)) for level in (0.5, 0.95))
    assert narrow < 0.5 * wide


def test_nineteen_in_twenty_intervals_hold_the_truth():
    truth = miou(*images(0, 100_000))
    held = [low <= truth <= high for low, high in (bootstrap_interval(*images(s, 60), num_resamples=200) for s in range(1, 101))]
    assert 88 <= sum(held) <= 99


def test_images_without_a_valid_pixel_are_left_out():
    intersection, union = torch.tensor([[1, 3], [0, 0]]), torch.tensor([[2, 4], [0, 0]])
    assert bootstrap_interval(intersection, union) == (0.625, 0.625)


def test_without_images_it_is_not_a_number():
    nothing = torch.zeros(0, 3, dtype=torch.int64)
    found, by_class = bootstrap_intervals(nothing, nothing)
    assert all(math.isnan(bound) for bounds in (found, *by_class) for bound in bounds)
    assert len(by_class) == 3


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0.0}, {"num_resamples": 0}])
def test_what_is_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=r"must be between 0 and 1, and at least 1"):
        bootstrap_interval(*images(0, 3), **wrong)


def test_differences_equal_a_loop_that_draws_the_same_images_for_both():
    first, second = images(0, 7, num_classes=4), images(1, 7, num_classes=4)
    for intersection, union in (first, second):
        intersection[:, 3] = union[:, 3] = 0  # occurs nowhere
    generator = torch.Generator().manual_seed(5)
    resamples = [torch.randint(7, (7,), generator=generator) for _ in range(300)]
    found, by_class = bootstrap_differences(first, second, num_resamples=300, level=0.9, seed=5)
    tails = torch.tensor([0.05, 0.95], dtype=torch.float64)
    both = [[(i[drawn], u[drawn]) for i, u in (first, second)] for drawn in resamples]
    mious = torch.tensor([miou(*after) - miou(*before) for before, after in both], dtype=torch.float64)
    assert found == pytest.approx(tuple(mious.quantile(tails).tolist()), abs=1e-12)
    for k in range(3):
        ious = [[float(i[:, k].sum() / u[:, k].sum().double()) for i, u in pair] for pair in both]
        expected = torch.tensor([after - before for before, after in ious], dtype=torch.float64).quantile(tails).tolist()
        assert by_class[k] == pytest.approx(tuple(expected), abs=1e-12)
    assert all(math.isnan(bound) for bound in by_class[3])


def test_the_same_images_make_a_difference_surer_than_two_intervals():
    """Images differ in how hard they are; a second network that is a little better on each is better for sure."""
    intersection, union = images(0, 40)
    better = torch.minimum(intersection + union // 20, union)
    (low, high), _ = bootstrap_differences((intersection, union), (better, union))
    apart, together = bootstrap_interval(intersection, union), bootstrap_interval(better, union)
    assert 0 < low < high < 0.06
    assert apart[1] > together[0], "the two intervals overlap"
    assert bootstrap_differences((union, union), (union, union))[0] == (0.0, 0.0)


def test_differences_without_images_are_unknown():
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    found, by_class = bootstrap_differences((nothing, nothing), (nothing, nothing))
    assert all(math.isnan(bound) for bounds in (found, *by_class) for bound in bounds)
    with pytest.raises(ValueError, match="level = 1"):
        bootstrap_differences((nothing, nothing), (nothing, nothing), level=1.0)
