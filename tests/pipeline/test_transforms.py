"""Image and label move together; the draw depends on (seed, epoch, sample) alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import layouts, transforms

GOLDEN = Path(__file__).parents[1] / "golden"
FILL = np.array([1, 2, 3], np.uint8)


def test_an_image_survives_encoding() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(transforms.decode_image(transforms.encode_png(image)), image)
    assert np.array_equal(transforms.decode_label(transforms.encode_png(image[..., 0])), image[..., 0])


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_what_does_not_decode_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable image"):
        transforms.decode_image(data)


def test_a_colour_label_is_refused() -> None:
    with pytest.raises(ValueError, match="one channel"):
        transforms.decode_label(transforms.encode_png(np.zeros((4, 4, 3), np.uint8)))


@given(seed=st.integers(0, 2**32 - 1), sample=st.integers(0, 2**30), low=st.sampled_from([1.0, 2.0]), tall=st.integers(20, 80))
def test_image_and_label_move_together(seed: int, sample: int, low: float, tall: int) -> None:
    """Every pixel carries its own row in image and label; integer scales with nearest neighbours would keep them equal."""
    rows = np.repeat(np.arange(tall, dtype=np.uint8)[:, None], 40, axis=1)
    image = np.stack([rows] * 3, axis=2)
    drawn = transforms.draw((tall, 40), crop=(33, 33), scale=(low, low), flip=True, seed=seed, epoch=0, sample=sample)
    crop, label = transforms.apply(image, rows, drawn, (33, 33), FILL)
    assert crop.shape == (33, 33, 3)
    inside = label != transforms.IGNORE
    # Bilinear rows lie between their neighbours: at most one row apart from the nearest one.
    assert np.abs(crop[..., 0].astype(int) - label)[inside].max() <= 1
    assert (crop[~inside] == FILL).all()


def test_a_mirrored_crop_mirrors_both() -> None:
    image = np.arange(17 * 17 * 3, dtype=np.uint32).astype(np.uint8).reshape(17, 17, 3)
    plain = transforms.Augmentation(17, 17, 0, 0, False)
    crop, label = transforms.apply(image, image[..., 0], plain, (17, 17), FILL)
    mirrored, mirrored_label = transforms.apply(image, image[..., 0], plain._replace(mirror=True), (17, 17), FILL)
    assert np.array_equal(mirrored, crop[:, ::-1])
    assert np.array_equal(mirrored_label, label[:, ::-1])


def test_a_draw_is_a_function_of_seed_epoch_and_sample() -> None:
    def draw(**change: int) -> transforms.Augmentation:
        key = {"seed": 1, "epoch": 2, "sample": 3} | change
        return transforms.draw((200, 300), crop=(65, 65), scale=(0.75, 2.0), flip=True, **key)

    assert draw() == draw()
    assert len({draw(), draw(seed=9), draw(epoch=9), draw(sample=9)}) == 4


@given(sample=st.integers(0, 10**6))
def test_a_crop_lies_inside_a_larger_image(sample: int) -> None:
    drawn = transforms.draw((100, 90), crop=(65, 65), scale=(0.75, 2.0), flip=True, seed=0, epoch=0, sample=sample)
    assert 0 <= drawn.top <= max(0, drawn.height - 65)
    assert 0 <= drawn.left <= max(0, drawn.width - 65)


def test_stepped_scales_are_the_published_fifteen() -> None:
    heights = set()
    for sample in range(400):
        key = {"crop": (65, 65), "scale": (0.7, 2.1), "scale_step": 0.1, "flip": True, "seed": 0, "epoch": 0}
        heights.add(transforms.draw((100, 200), sample=sample, **key).height)
    assert heights == set(range(70, 211, 10))


@pytest.mark.parametrize("case", ["prep_pad", "prep_pad_flip"])
def test_preparation_equals_the_published_one(case: str) -> None:
    """The image exactly, once the mean is taken off; its padding, uint8 here, is the mean rounded: at most 0.5 of 255 away."""
    with np.load(GOLDEN / f"{case}.npz") as z:
        size, crop, mean = z["label_ids"].shape, tuple(map(int, z["crop"])), z["mean_bgr"][::-1]
        train_ids = np.vectorize(layouts.CITYSCAPES_LABEL_MAP.get, otypes=[np.uint8])(z["label_ids"])
        drawn = transforms.Augmentation(*size, 0, 0, bool(z["flipped"]))
        image, label = transforms.apply(z["rgb"], train_ids, drawn, crop, np.round(mean).astype(np.uint8))
        assert np.array_equal(label, z["labels_out"])
        difference = np.abs((image - mean).transpose(2, 0, 1)[::-1] - z["image_out"])
    columns = np.arange(crop[1]) < size[1]
    inside = np.outer(np.arange(crop[0]) < size[0], columns[::-1] if drawn.mirror else columns)
    assert difference[:, inside].max() == 0
    assert 0 < difference[:, ~inside].max() <= 0.5


def test_cityscapes_ids_map_as_published() -> None:
    """But for 34 to 254, which the published code passes on as classes: here they are not in the map, and refused."""
    with np.load(GOLDEN / "prep_pad.npz") as z:
        published = z["id_to_train"]
    assert {stored: published[stored] for stored in (*range(34), 255)} == layouts.CITYSCAPES_LABEL_MAP
