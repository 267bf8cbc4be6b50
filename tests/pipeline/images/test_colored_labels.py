"""Labels in colours become labels of ids; colours that tell no class, and palettes that contradict the ids, are faults."""

import io
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.images.codec import UInt8, decode_label, encode_png
from pipeline.images.colored_labels import Color, has_palette, is_rgb, with_ids

ROAD, CAR, VOID = (128, 64, 128), (0, 0, 142), (0, 0, 0)
IDS: dict[Color, int] = {ROAD: 0, CAR: 4, VOID: 7}
MAP = {0: 0, 4: 1, 7: 255, 255: 255}


def painted(ids: UInt8, mode: Literal["RGB", "RGBA"] = "RGB", colors: dict[Color, int] = IDS) -> bytes:
    """A label in colours; its alpha is 0 in the first row."""
    table = np.zeros((256, 4), np.uint8)
    for color, stored in colors.items():
        table[stored] = (*color, 255)
    pixels = table[ids]
    pixels[0, :, 3] = 0
    return png(Image.fromarray(pixels if mode == "RGBA" else np.ascontiguousarray(pixels[..., :3])))


def with_palette(indices: UInt8, *colors: Color) -> bytes:
    """A palette PNG of 8 bits, whose palette ends at index 16."""
    image = Image.fromarray(indices, "P")
    image.putpalette([value for color in (*colors, *[(77, 77, 77)] * (17 - len(colors))) for value in color])
    return png(image)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, (5, 7), elements=st.sampled_from(list(IDS.values()))), st.sampled_from(["RGB", "RGBA"]))
def test_colours_become_ids_whatever_alpha_is(ids: UInt8, mode: Literal["RGB", "RGBA"]) -> None:
    label = painted(ids, mode)
    assert is_rgb(label)
    assert np.array_equal(decode_label(with_ids(label, IDS, MAP)), ids)


def test_colours_without_a_class_are_counted_the_most_frequent_first() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[0, :3], pixels[1, 0] = (9, 8, 7), (250, 1, 2)
    with pytest.raises(
        ValueError,
        match=r"to none or to several: \[9, 8, 7\] \(3 pixels\), \[250, 1, 2\] \(1 pixels\); list them in classes.yaml",
    ):
        with_ids(png(Image.fromarray(pixels)), IDS, MAP)
    photograph = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r" and 27 more; "):
        with_ids(png(Image.fromarray(photograph)), IDS, MAP)


def test_a_label_of_one_channel_has_no_colours() -> None:
    grey, deep = encode_png(np.zeros((4, 4), np.uint8)), png(Image.fromarray(np.zeros((4, 4), np.uint16)))
    for data in (grey, deep, b"", b"\x89PNG", b"\xff\xd8\xff"):
        assert not is_rgb(data)
        assert not has_palette(data)


INDICES = np.array([[0, 1], [2, 255]], np.uint8)
THREE: dict[Color, int] = {ROAD: 0, CAR: 1, VOID: 2}
OWN_MAP = {0: 0, 1: 1, 2: 2, 255: 255}


@pytest.mark.parametrize(
    "palette",
    [
        (ROAD, CAR, VOID),  # agrees
        ((1, 1, 1), (2, 2, 2), (3, 3, 3)),  # tells nothing
        (CAR, (2, 2, 2), ROAD),  # one of the colours tells nothing, so the palette is of another list
        (ROAD,),
    ],
)
def test_the_indices_of_a_palette_are_ids(palette: tuple[Color, ...]) -> None:
    label = with_palette(INDICES, *palette)
    assert has_palette(label)
    assert with_ids(label, THREE, OWN_MAP) == label


def test_a_palette_in_another_order_than_the_classes_is_a_fault() -> None:
    with pytest.raises(
        ValueError, match=r"contradicts .*: index 0 has the colour of id 1, index 1 has the colour of id 0; correct"
    ):
        with_ids(with_palette(INDICES, CAR, ROAD, VOID), THREE, OWN_MAP)
    two_ids_of_a_class = {0: 0, 1: 0, 2: 2, 255: 255}
    label = with_palette(INDICES, CAR, ROAD, VOID)
    assert with_ids(label, THREE, two_ids_of_a_class) == label


def test_a_palette_with_illegal_indices_is_read_by_its_colours() -> None:
    label = with_palette(np.array([[3, 3], [1, 2]], np.uint8), (9, 9, 9), CAR, VOID, ROAD)
    assert decode_label(with_ids(label, THREE, OWN_MAP)).tolist() == [[0, 0], [1, 2]]


def test_a_palette_png_without_a_palette_is_read_by_its_indices() -> None:
    label = bytearray(encode_png(INDICES))
    label[25] = 3
    with pytest.raises(ValueError, match="chunk 'IHDR' at byte 8 fails its checksum"):
        with_ids(bytes(label), THREE, OWN_MAP)
