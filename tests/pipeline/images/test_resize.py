"""Every kind of PNG label decodes to its stored values; a cut that is resized alone equals the cut of the resized image."""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.classes import CITYSCAPES_LABEL_MAP
from pipeline.images import codec, resize

GOLDEN = Path(__file__).parents[2] / "golden"
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (300, 300, 3), np.uint8)
FACTORS = st.one_of(st.integers(8, 96).map(lambda k: Fraction(k, 32)), st.integers(3, 30).map(lambda k: Fraction(k, 10)))


def encoded(image: Image.Image, form: str = "png", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def interlaced(pixels: np.ndarray, depth: int, colour: int) -> bytes:
    """An Adam7 PNG (PNG specification, section 8.2) of uint8[H, W] values below 2**depth, which pillow cannot write."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, across in passes:
        for row in pixels[top::down, left::across]:
            bits = (row[:, None] >> np.arange(depth)[::-1]) & 1
            rows += b"\0" + np.packbits(bits.ravel()).tobytes() if len(row) else b""
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 1)
    palette = chunk(b"PLTE", IMAGE[0, : 2**depth].tobytes()) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_image_survives_encoding() -> None:
    image = IMAGE[:5, :7]
    assert np.array_equal(codec.decode_image(codec.encode_png(image)), image)
    assert np.array_equal(codec.decode_label(codec.encode_png(image[..., 0])), image[..., 0])


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_what_does_not_decode_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable image"):
        codec.decode_image(data)
    with pytest.raises(ValueError, match=r"empty file|text, not an image"):
        codec.decode_label(data)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "1"])
def test_every_image_becomes_rgb(mode: str) -> None:
    picture = Image.fromarray(IMAGE[:20, :30]).convert(mode)
    assert np.array_equal(codec.decode_image(encoded(picture)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_pixels_stay_where_they_are_stored_despite_an_exif_orientation(form: str) -> None:
    """Orientation 6 means a quarter turn; the label has none, so the two would no longer match."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(IMAGE[:20, :30])
    image = codec.decode_image(encoded(picture, form, exif=exif))
    assert np.array_equal(image, codec.decode_image(encoded(picture, form)))
    label = encoded(Image.fromarray(IMAGE[:20, :30, 0]), exif=exif)
    assert np.array_equal(codec.decode_label(label), IMAGE[:20, :30, 0])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 30])
def test_a_palette_png_decodes_to_its_indices(depth: int, width: int) -> None:
    stored = IMAGE[:20, :width, 0] & (2**depth - 1)
    picture = Image.frombytes("P", (width, 20), stored.tobytes())
    picture.putpalette(IMAGE[0, : 2**depth].tobytes())
    for options in ({}, {"transparency": 0}):
        data = encoded(picture, bits=depth, **options)
        assert (data[24], data[25]) == (depth, 3)
        label = codec.decode_label(data)
        assert label.dtype == np.uint8
        assert np.array_equal(label, stored)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize("width", [1, 7, 30])
def test_an_interlaced_png_decodes_to_its_values(depth: int, colour: int, width: int) -> None:
    stored = IMAGE[:21, :width, 0] & (2**depth - 1)
    data = interlaced(stored, depth, colour)
    if depth == 8 or colour == 3:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), stored)  # pillow can read our PNG
    codec.check_encoding(data)
    assert np.array_equal(codec.decode_label(data), stored)


def test_a_grey_png_of_one_bit_keeps_zero_and_one() -> None:
    data = encoded(Image.fromarray(IMAGE[:9, :11, 0] > 99))
    assert (data[24], data[25]) == (1, 0)
    assert np.array_equal(codec.decode_label(data), IMAGE[:9, :11, 0] > 99)


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        (Image.fromarray(IMAGE[:4, :4]), "RGB of 8 bits"),
        (Image.fromarray(IMAGE[:4, :4]).convert("RGBA"), "RGBA of 8 bits"),
        (Image.fromarray(IMAGE[:4, :4]).convert("LA"), "grey and alpha of 8 bits"),
        (Image.fromarray(IMAGE[:4, :4, 0].astype(np.uint16)), "grey of 16 bits"),
    ],
)
def test_another_label_is_refused_by_what_it_is(picture: Image.Image, found: str) -> None:
    with pytest.raises(ValueError, match=f"8-bit image of one channel or a palette PNG, found {found}"):
        codec.decode_label(encoded(picture))


def test_a_colour_label_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one channel.*found RGB of 8 bits"):
        codec.decode_label(encoded(Image.fromarray(IMAGE[:4, :4]), "bmp"))


def test_a_damaged_label_is_refused_wherever_it_is_cut_or_changed() -> None:
    picture = Image.fromarray(IMAGE[:20, :30, 0] % 16).convert("P")
    data = encoded(picture)
    for end in range(0, len(data), 5):
        with pytest.raises(ValueError, match=r"empty file|no image|truncated PNG"):
            codec.decode_label(data[:end])
    for place in (18, 24, 25, 28):  # width, depth, colour type, interlacing
        with pytest.raises(ValueError, match="chunk 'IHDR' at byte 8 fails its checksum"):
            codec.decode_label(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@settings(deadline=None, max_examples=300)
@given(data=st.data(), factor=FACTORS, height=st.integers(17, 300), width=st.integers(17, 300))
def test_a_cut_resized_alone_equals_the_whole_resized_and_cut(
    data: st.DataObject, factor: Fraction, height: int, width: int
) -> None:
    check(data, factor, IMAGE[:height, :width])


@settings(deadline=None, max_examples=100)
@given(data=st.data(), factor=FACTORS, height=st.integers(2, 40), width=st.integers(2, 40))
def test_small_images_and_cuts_are_exact_as_well(data: st.DataObject, factor: Fraction, height: int, width: int) -> None:
    check(data, factor, IMAGE[:height, :width])


# Published factors, denominator 32, nearest neighbours that fall on integers, and weights that fall between two levels.
@pytest.mark.parametrize("factor", ["7/10", "21/10", "13/10", "13/5", "33/32", "31/32", "13/32", "49/32", "1/2", "3", "256/125"])
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_photographs_are_exact_as_well(factor: str, data: st.DataObject) -> None:
    check(data, Fraction(factor), np.ascontiguousarray(np.tile(IMAGE, (3, 5, 1))[:769, :1277]))


def check(data: st.DataObject, factor: Fraction, image: np.ndarray) -> None:
    label, zoom = np.ascontiguousarray(image[..., 0]), float(factor)
    size = round(image.shape[0] * zoom), round(image.shape[1] * zoom)
    if size == label.shape or 0 in size:
        return
    whole = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR_EXACT)
    nearest = cv2.resize(label, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    assert whole.shape[:2] == size
    height, width = (data.draw(st.integers(1, side)) for side in size)
    top, left = data.draw(st.integers(0, size[0] - height)), data.draw(st.integers(0, size[1] - width))
    for extent in ((top, left, height, width), (size[0] - height, size[1] - width, height, width)):
        rows, columns = slice(extent[0], extent[0] + height), slice(extent[1], extent[1] + width)
        assert np.array_equal(resize.cut_image(image, size, factor, extent), whole[rows, columns])
        assert np.array_equal(resize.cut_label(label, size, factor, extent), nearest[rows, columns])


@settings(deadline=None)
@given(size=st.tuples(st.integers(1, 400), st.integers(1, 400)))
def test_a_cut_of_a_resize_to_a_size_is_exact(size: tuple[int, int]) -> None:
    image = IMAGE[:97, :131]
    whole = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    nearest = cv2.resize(image[..., 0], size[::-1], interpolation=cv2.INTER_NEAREST)
    top, left = size[0] // 3, size[1] // 2
    extent = (top, left, size[0] - top, size[1] - left)
    assert np.array_equal(resize.cut_image(image, size, None, extent), whole[top:, left:])
    assert np.array_equal(resize.cut_label(image[..., 0], size, None, extent), nearest[top:, left:])


def test_cityscapes_ids_map_as_published() -> None:
    """All ids but 34 to 254, which the published code passes on as classes. Here they are not in the map and are refused."""
    with np.load(GOLDEN / "prep_pad.npz") as z:
        published = z["id_to_train"]
    assert {stored: published[stored] for stored in (*range(34), 255)} == CITYSCAPES_LABEL_MAP
