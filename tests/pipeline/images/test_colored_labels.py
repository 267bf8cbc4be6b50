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
from pipeline.images.colored_labels import Color, holds_ids, with_ids
from tests.support.pictures import saved, tiff

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
    assert not holds_ids(label, IDS)
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
    with pytest.raises(ValueError, match=r" and 27 more; list them in classes.yaml"):
        with_ids(png(Image.fromarray(photograph)), IDS, MAP)
    photograph = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"exchange images and masks if they are swapped, or export the mask .* list them in classes"
    ):
        with_ids(png(Image.fromarray(photograph)), IDS, MAP)


@pytest.mark.parametrize(("form", "options"), [("png", {}), ("tiff", {"compression": "tiff_lzw"}), ("tiff", {}), ("bmp", {})])
def test_colours_and_palettes_are_read_alike_from_every_format_of_labels(form: str, options: dict[str, str]) -> None:
    ids = np.array([[0, 4, 7], [7, 4, 0]], np.uint8)
    for mode in ("RGB", "RGBA"):
        label = saved(Image.open(io.BytesIO(painted(ids, mode))), form, **options)  # type: ignore[arg-type]
        assert decode_label(with_ids(label, IDS, MAP)).tolist() == ids.tolist()

    def drawn(indices: list[list[int]], *colors: Color) -> bytes:
        return saved(Image.open(io.BytesIO(with_palette(np.array(indices, np.uint8), *colors))), form, **options)

    agrees = drawn([[0, 1, 2]], ROAD, CAR, VOID)
    assert with_ids(agrees, THREE, OWN_MAP) == agrees
    assert decode_label(with_ids(drawn([[3, 1, 2]], (9, 9, 9), CAR, VOID, ROAD), THREE, OWN_MAP)).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"contradicts .*: index 0 has the colour of id 1, index 1 has the colour of id 0"):
        with_ids(drawn([[0, 1, 2]], CAR, ROAD, VOID), THREE, OWN_MAP)


def test_a_label_of_one_channel_has_no_colours() -> None:
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for form in ("png", "tiff", "bmp"):  # the grey of a BMP is a palette of greys, which agree with no class here
        label = saved(ids, form)
        assert holds_ids(label, {(1, 1, 1): 0, (0, 0, 0): 1})
        assert decode_label(with_ids(label, {(1, 1, 1): 0, (0, 0, 0): 1}, {i: i for i in range(6)})).tolist() == ids.tolist()
    bits = saved(Image.fromarray(ids % 2 * 255).convert("1"), "bmp")
    assert with_ids(bits, {(0, 0, 0): 1, (255, 255, 255): 0}, {0: 0, 1: 1}) == bits


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_ids_in_16_bits_in_grey_with_alpha_or_in_three_equal_channels_become_ids_of_8_bits(form: str) -> None:
    ids = np.array([[0, 3, 255], [7, 1, 2]], np.uint8)
    grey, clear = Image.fromarray(ids), Image.fromarray(np.zeros_like(ids))
    for picture in (
        Image.fromarray(ids.astype(np.uint16)),
        Image.merge("LA", (grey, clear)),
        Image.merge("RGB", (grey, grey, grey)),
        Image.merge("RGBA", (grey, grey, grey, clear)),
    ):
        label = saved(picture, form)
        assert not holds_ids(label, {})
        assert decode_label(with_ids(label, {}, MAP)).tolist() == ids.tolist()
    with pytest.raises(ValueError, match=r"\[1, 1, 1\] \(1 pixels\)"):  # a list of colours says that colours are classes
        with_ids(saved(Image.merge("RGB", (grey, grey, grey)), form), IDS, MAP)


def test_grey_with_alpha_of_16_bits_in_a_tiff_is_not_taken_for_ids_of_0() -> None:
    label = tiff(np.dstack([np.arange(6).reshape(2, 3)] * 2).astype(np.uint16), 1, t338=[2])
    assert with_ids(label, {}, MAP) == label
    with pytest.raises(ValueError, match="found grey and alpha of 16 bits a channel; store class ids instead"):
        decode_label(label)


def test_16_bit_values_that_are_no_ids_are_a_fault() -> None:
    label = saved(np.array([[0, 1, 65535, 256]], np.uint16), "png")
    with pytest.raises(
        ValueError, match=r"^values above 255: 256, 65535: an id has 8 bits: save such pixels with an id below 255"
    ):
        with_ids(label, {}, MAP)


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
    assert not holds_ids(label, THREE)
    assert holds_ids(label, {})
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
