"""Image and label move together; the draw depends on (seed, epoch, sample) alone; a crop equals that of the whole image."""

import colorsys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.classes import CITYSCAPES_LABEL_MAP
from pipeline.images.augment import MEAN_COLOUR, Augmentation, Photometric, Recipe, apply, augment, draw

GOLDEN = Path(__file__).parents[2] / "golden"
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (200, 260, 3), np.uint8)
LABEL = np.kron(RANDOM.integers(0, 6, (10, 13), np.uint8), np.ones((20, 20), np.uint8))
IDENTITY = np.arange(256, dtype=np.uint8)
# Stored ids 0 to 3 are the classes 1, 0, 2 and 2; the others are ignored.
MAP = np.array([1, 0, 2, 2] + [255] * 252, np.uint8)
KEY = {"seed": 1, "epoch": 2, "sample": 3}


def plain(image: np.ndarray, crop: tuple[int, int]) -> Augmentation:
    """An augmentation that changes nothing and cuts at the corner of the image."""
    return Augmentation(image.shape[:2], Fraction(1), crop, 0, 0, False)


def whole(image: np.ndarray, label: np.ndarray, drawn: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """The reference: resize and pad the whole image, then cut and mirror."""
    if drawn.size != label.shape:
        how = (
            {"dsize": None, "fx": float(drawn.factor), "fy": float(drawn.factor)} if drawn.factor else {"dsize": drawn.size[::-1]}
        )
        image = cv2.resize(image, **how, interpolation=cv2.INTER_LINEAR_EXACT)
        label = cv2.resize(label, **how, interpolation=cv2.INTER_NEAREST)
    (height, width), (top, left) = drawn.crop, (drawn.top, drawn.left)
    size = max(height, label.shape[0]), max(width, label.shape[1])
    padded, ids = np.full((*size, 3), (123, 117, 104), np.uint8), np.full(size, 255, np.uint8)
    padded[: label.shape[0], : label.shape[1]] = image
    ids[: label.shape[0], : label.shape[1]] = label
    step = -1 if drawn.mirror else 1
    image, label = padded[top : top + height, left : left + width], ids[top : top + height, left : left + width]
    return image[:, ::step], label[:, ::step]


recipes = st.builds(
    Recipe,
    crop=st.tuples(st.integers(9, 220), st.integers(9, 220)),
    scale=st.sampled_from([(0.75, 2.0), (0.5, 2.0), (0.7, 2.1)]),
    scale_step=st.sampled_from([None, 0.1]),
    short_sides=st.sampled_from([(), (75, 93, 112), (131,)]),
    flip=st.booleans(),
    cat_max=st.sampled_from([None, 0.75]),
    photometric=st.just(False),
).filter(lambda r: r.scale_step is None or r.scale == (0.7, 2.1))


@settings(deadline=None, max_examples=200)
@given(recipe=recipes, sample=st.integers(0, 2**39), height=st.integers(17, 200), width=st.integers(17, 260))
def test_a_crop_equals_that_of_the_whole_image(recipe: Recipe, sample: int, height: int, width: int) -> None:
    pair = IMAGE[:height, :width], LABEL[:height, :width]
    drawn = draw(pair[1], MAP, recipe, seed=7, epoch=1, sample=sample)
    image, label = augment(*pair, MAP, recipe, seed=7, epoch=1, sample=sample)
    expected, ids = whole(*pair, drawn)
    assert image.shape == (*recipe.crop, 3)
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous
    assert np.array_equal(image, expected)
    assert np.array_equal(label, MAP[ids])


@settings(deadline=None)
@given(sample=st.integers(0, 2**30), factor=st.sampled_from([1.0, 0.75, 1.3, 2.0]))
def test_image_and_label_move_together(sample: int, factor: float) -> None:
    """Every pixel stores its position: the column in red, the row in green, and both in the label."""
    rows, columns = np.mgrid[:120, :160].astype(np.uint8)
    image = np.stack([columns, rows, columns], axis=2)
    label = (rows // 8 * 16 + columns // 10).astype(np.uint8)
    recipe = Recipe((97, 97), scale=(factor, factor))
    crop, classes = augment(image, label, IDENTITY, recipe, seed=0, epoch=0, sample=sample)
    inside = np.outer(*(np.arange(97) < round(side * factor) for side in (120, 160)))
    if draw(label, IDENTITY, recipe, seed=0, epoch=0, sample=sample).mirror:
        inside = inside[:, ::-1]
    red, green = crop[..., 0].astype(int), crop[..., 1].astype(int)
    # Nearest and bilinear pixels lie at most one source pixel apart.
    off = 0 if factor == 1 else 1
    possible = np.stack([(green + dy) // 8 * 16 + (red + dx) // 10 for dy in range(-off, off + 1) for dx in range(-off, off + 1)])
    assert (possible == classes).any(axis=0)[inside].all()
    assert (crop[~inside] == MEAN_COLOUR).all()
    assert (classes[~inside] == 255).all()


def test_a_draw_is_a_function_of_seed_epoch_sample_and_stream() -> None:
    changes = [{}, {"seed": 9}, {"epoch": 9}, {"sample": 9}, {"stream": 1}, {"stream": 2}]
    draws = [draw(LABEL, MAP, Recipe((65, 65)), **KEY | change) for change in changes]
    assert draws == [draw(LABEL + 1, MAP, Recipe((65, 65)), **KEY | change) for change in changes]
    assert len(set(draws)) == len(changes)


@pytest.mark.parametrize(("sample", "expected"), [(0, (188, 735, True)), (1, (34, 544, False)), (7, (181, 469, False))])
def test_unscaled_crops_are_those_of_version_0_1(sample: int, expected: tuple[int, int, bool]) -> None:
    """The expected positions and mirrors were printed by `transforms.draw` of version 0.1."""
    label = np.zeros((1024, 2048), np.uint8)
    drawn = draw(label, MAP, Recipe((769, 769), scale=(1, 1)), seed=3, epoch=2, sample=sample)
    assert (drawn.top, drawn.left, drawn.mirror) == expected


def test_a_setting_changes_what_it_names_and_no_more() -> None:
    base = draw(LABEL, MAP, Recipe((65, 65)), **KEY)
    coloured = draw(LABEL, MAP, Recipe((65, 65), photometric=True), **KEY)
    assert coloured != base
    assert coloured._replace(photometric=base.photometric) == base
    assert draw(LABEL, MAP, Recipe((65, 65), flip=False), **KEY) == base._replace(mirror=False)


def test_stepped_scales_are_the_published_fifteen() -> None:
    recipe = Recipe((65, 65), scale=(0.7, 2.1), scale_step=0.1)
    factors = {draw(LABEL, MAP, recipe, seed=0, epoch=0, sample=sample).factor for sample in range(400)}
    assert factors == {Fraction(tenths, 10) for tenths in range(7, 22)}


def test_drawn_scales_are_uniform_on_a_grid_of_32nds_and_end_where_the_range_does() -> None:
    recipe = Recipe((65, 65), scale=(0.7, 1.99))
    draws = [draw(LABEL, MAP, recipe, seed=0, epoch=0, sample=sample) for sample in range(4000)]
    factors = [drawn.factor for drawn in draws]
    assert set(factors) == {Fraction(7, 10), Fraction(199, 100), *(Fraction(k, 32) for k in range(23, 64))}
    assert abs(np.mean([float(f) for f in factors]) - 1.345) < 0.02
    assert abs(np.mean([drawn.mirror for drawn in draws]) - 0.5) < 0.03
    # Positions are uniform: their mean is the middle of their range.
    assert abs(np.mean([drawn.top / (drawn.size[0] - 65) for drawn in draws]) - 0.5) < 0.02
    assert abs(np.mean([drawn.left / (drawn.size[1] - 65) for drawn in draws]) - 0.5) < 0.02


def test_the_ade20k_recipe_draws_the_shorter_side() -> None:
    recipe = Recipe((473, 473), short_sides=(300, 375, 450, 525, 600))
    sizes = {draw(np.zeros((512, 683), np.uint8), MAP, recipe, seed=0, epoch=0, sample=s).size for s in range(100)}
    assert sizes == {(300, 400), (375, 500), (450, 600), (525, 700), (600, 800)}


def test_a_small_image_is_padded_with_the_mean_and_ignored() -> None:
    image, label = augment(IMAGE[:20, :30], LABEL[:20, :30] * 0, MAP, Recipe((33, 41), (1, 1), flip=False), **KEY)
    assert np.array_equal(image[:20, :30], IMAGE[:20, :30])
    assert (label[:20, :30] == 1).all()
    assert (image[20:] == [123, 117, 104]).all()
    assert (image[:, 30:] == [123, 117, 104]).all()
    assert (label[20:] == 255).all()
    assert (label[:, 30:] == 255).all()


def test_a_mirrored_crop_mirrors_both_and_their_padding() -> None:
    drawn = plain(IMAGE, (240, 280))
    image, label = apply(IMAGE, LABEL, MAP, drawn)
    mirrored, mirrored_label = apply(IMAGE, LABEL, MAP, drawn._replace(mirror=True))
    assert np.array_equal(mirrored, image[:, ::-1])
    assert np.array_equal(mirrored_label, label[:, ::-1])


def test_a_crop_is_never_a_view_of_its_image() -> None:
    image, label = apply(IMAGE, LABEL, IDENTITY, plain(IMAGE, (200, 260)))
    assert not np.shares_memory(image, IMAGE)
    assert not np.shares_memory(label, LABEL)


def test_an_image_of_one_pixel_survives_a_factor_that_rounds_it_away() -> None:
    _, label = augment(IMAGE[:1, :9], LABEL[:1, :9], IDENTITY, Recipe((9, 9), (0.3, 0.3)), **KEY)
    assert (label[1:] == 255).all()
    assert (label[:1] != 255).sum() == 3


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in size: \(200, 260\) and \(260, 200\)"):
        augment(IMAGE, LABEL.T, MAP, Recipe((65, 65)), **KEY)


@pytest.mark.parametrize("cat_max", [0.45, 0.6, 0.75, 1.0])
def test_cat_max_takes_the_first_varied_position_of_ten(cat_max: float) -> None:
    """Compares with the rule written out: count the classes of the padded crop, without ignored pixels (mmsegmentation)."""
    tries = []
    recipe = Recipe((49, 49), scale=(0.75, 2.0))
    for sample in range(150):
        key = {"seed": 5, "epoch": 0, "sample": sample}
        base = draw(LABEL, MAP, recipe, **key)
        generator = np.random.Philox(key=np.array([5, sample], np.uint64))
        numbers = np.random.Generator(generator).random(32)
        pairs = [tuple(numbers[1:3]), *map(tuple, numbers[14:].reshape(9, 2))]
        for pair in pairs:
            top, left = (int(p * (side - 49 + 1)) for p, side in zip(pair, base.size, strict=True))
            classes = MAP[whole(IMAGE, LABEL, base._replace(top=top, left=left))[1]]
            _, counts = np.unique(classes[classes != 255], return_counts=True)
            if len(counts) > 1 and counts.max() / counts.sum() < cat_max:
                break
        assert draw(LABEL, MAP, recipe._replace(cat_max=cat_max), **key) == base._replace(top=top, left=left)
        tries.append(pairs.index(pair))
    assert len(set(tries)) > 1


def test_a_single_class_is_drawn_ten_times_and_then_kept() -> None:
    label, recipe = np.zeros((200, 260), np.uint8), Recipe((65, 65), (1, 1), cat_max=0.75)
    last = np.random.Generator(np.random.Philox(key=np.array([1, 2 << 40 | 3], np.uint64))).random(32)[-2:]
    drawn = draw(label, MAP, recipe, **KEY)
    assert (drawn.top, drawn.left) == (int(last[0] * 136), int(last[1] * 196))


def reference(pixel: np.ndarray, change: Photometric) -> tuple[float, ...]:
    """PhotoMetricDistortion of one RGB pixel in floats, with hue and saturation rounded to OpenCV's 8 bits."""
    rgb = np.trunc(np.clip(pixel + change.brightness, 0, 255))
    if not change.contrast_last:
        rgb = np.trunc(np.clip(rgb * change.contrast, 0, 255))
    if change.saturation != 1 or change.hue != 0:
        hue, saturation, value = colorsys.rgb_to_hsv(*(rgb / 255))
        hue, saturation = round(hue * 180) % 180, round(saturation * 255)
        hue, saturation = (hue + change.hue) % 180, min(255, int(saturation * change.saturation))
        rgb = np.rint(255 * np.array(colorsys.hsv_to_rgb(hue / 180, saturation / 255, value)))
    return tuple(np.trunc(np.clip(rgb * change.contrast, 0, 255)) if change.contrast_last else rgb)


CHANGES = [
    Photometric(brightness=-31.5),
    Photometric(brightness=20.25, contrast=1.4),
    Photometric(brightness=20.25, contrast=0.6, contrast_last=True),
    Photometric(saturation=1.45),
    Photometric(hue=-18),
    Photometric(-7.5, 1.2, False, 0.55, 18),
    Photometric(-7.5, 1.2, True, 0.55, 17),
]


@pytest.mark.parametrize("change", CHANGES)
def test_colours_change_as_in_floats_and_nothing_else_does(change: Photometric) -> None:
    drawn = plain(IMAGE, (65, 300))._replace(mirror=True, size=(300, 390), factor=Fraction(3, 2))
    unchanged, label = apply(IMAGE, LABEL, MAP, drawn._replace(crop=(310, 65)))
    image, changed_label = apply(IMAGE, LABEL, MAP, drawn._replace(crop=(310, 65), photometric=change))
    assert np.array_equal(label, changed_label)
    assert (image[300:] == MEAN_COLOUR).all()
    pixels = unchanged[:300:4, ::2].reshape(-1, 3).astype(float)
    expected = np.array([reference(pixel, change) for pixel in pixels])
    difference = np.abs(image[:300:4, ::2].reshape(-1, 3) - expected)
    if change[3:] == (1, 0):
        assert difference.max() < 1e-9
    # OpenCV may round the hue to the other side; its step of 2 degrees is up to 255 / 30 = 8.5 levels.
    assert np.quantile(difference, 0.99) <= 2
    assert difference.max() < 9


def test_without_a_change_the_colours_stay() -> None:
    recipe = Recipe((65, 65), (1, 1), photometric=True)
    sample = next(s for s in range(200) if draw(LABEL, MAP, recipe, seed=0, epoch=0, sample=s).photometric[:2] == (0, 1)
                  and draw(LABEL, MAP, recipe, seed=0, epoch=0, sample=s).photometric[3:] == (1, 0))  # fmt: skip
    coloured = augment(IMAGE, LABEL, MAP, recipe, seed=0, epoch=0, sample=sample)
    usual = augment(IMAGE, LABEL, MAP, recipe._replace(photometric=False), seed=0, epoch=0, sample=sample)
    assert np.array_equal(coloured[0], usual[0])


def test_colour_changes_fill_their_ranges_each_half_of_the_time() -> None:
    recipe = Recipe((65, 65), photometric=True)
    changes = [draw(LABEL, MAP, recipe, seed=0, epoch=0, sample=s).photometric for s in range(3000)]
    brightness, contrast, last, saturation, hue = np.array(changes, float).T
    for values, neutral, low, high in (
        (brightness, 0, -32, 32),
        (contrast, 1, 0.5, 1.5),
        (saturation, 1, 0.5, 1.5),
        (hue, 0, -18, 18),
    ):
        drawn = values[values != neutral]
        assert abs(len(drawn) / 3000 - 0.5) < 0.04
        assert low <= drawn.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < drawn.max() <= high
        assert abs(drawn.mean() - (low + high) / 2) < 0.03 * (high - low)
    assert abs(last.mean() - 0.5) < 0.04


@pytest.mark.parametrize("case", ["prep_pad", "prep_pad_flip"])
def test_preparation_equals_the_published_one(case: str) -> None:
    """The image minus the mean is exactly equal. Its padding is the mean rounded to uint8: at most 0.5 of 255 away."""
    with np.load(GOLDEN / f"{case}.npz") as z:
        size, crop, mean = z["label_ids"].shape, tuple(map(int, z["crop"])), z["mean_bgr"][::-1]
        train_ids = np.vectorize(CITYSCAPES_LABEL_MAP.get, otypes=[np.uint8])(z["label_ids"])
        drawn = Augmentation(size, Fraction(1), crop, 0, 0, bool(z["flipped"]))
        image, label = apply(z["rgb"], train_ids, IDENTITY, drawn)
        assert np.array_equal(label, z["labels_out"])
        difference = np.abs((image - mean).transpose(2, 0, 1)[::-1] - z["image_out"])
    columns = np.arange(crop[1]) < size[1]
    inside = np.outer(np.arange(crop[0]) < size[0], columns[::-1] if drawn.mirror else columns)
    assert difference[:, inside].max() == 0
    assert 0 < difference[:, ~inside].max() <= 0.5
