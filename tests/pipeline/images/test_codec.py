"""Decoding and checking of image files, compared with Pillow as an independent decoder."""

import contextlib
import itertools
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipeline.images import codec
from tests.support import pictures
from tests.support.pictures import saved, smooth

RANDOM = np.random.default_rng(0)
COLOUR = smooth(RANDOM)
IDS = RANDOM.integers(0, 6, (24, 31), dtype=np.uint8)
JPEG = saved(COLOUR, "jpeg")
FORMS = pictures.forms(RANDOM)


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_decoded_as_by_an_independent_decoder(name: str) -> None:
    kind, data = FORMS[name]
    header = codec.check_image(data)
    image = codec.decode_image(data)
    assert np.array_equal(image, pictures.decoded(data))
    assert (header.height, header.width) == image.shape[:2]
    if kind == "label":
        label = codec.decode_label(data)
        assert np.array_equal(label, pictures.indices(data))
        assert len(np.unique(label)) > 1


def test_a_mutated_file_is_decoded_as_by_an_independent_decoder_or_is_a_fault() -> None:
    random, faults, names = np.random.default_rng(17), 0, list(FORMS)
    for number in range(2000):
        kind, data = FORMS[names[number % len(names)]]
        data = pictures.mutated(data, random)
        try:
            (codec.check_encoding if kind == "label" else codec.check_image)(data)
            ours = (codec.decode_label if kind == "label" else codec.decode_image)(data)
        except ValueError:
            faults += 1
            continue
        with warnings.catch_warnings(action="ignore"):
            theirs = (pictures.indices if kind == "label" else pictures.decoded)(data)
        assert np.array_equal(ours, theirs), (number, names[number % len(names)])
    assert 900 < faults < 1400  # appended bytes, and changes without a trace in formats without checksums, are no faults


def damaged(data: bytes, start: float, length: int) -> bytes:
    """With zero bytes at a part of its length."""
    place = int(len(data) * start)
    return data[:place] + bytes(length) + data[place + length :]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_damage_inside_a_jpeg_is_a_fault_though_the_decoder_returns_a_picture(options: dict[str, int]) -> None:
    whole = saved(smooth(np.random.default_rng(1), 96, 128), "jpeg", **options)
    codec.check_image(whole)
    middle = len(whole) // 2
    for data in (whole[:middle] + whole[middle + 300 :], whole[: int(len(whole) * 0.7)] + b"\xff\xd9"):
        assert codec.decode_image(data).shape == (96, 128, 3)
        with pytest.raises(ValueError, match=r"damaged JPEG: (Corrupt JPEG data|Inconsistent)|truncated JPEG: scans are missing"):
            codec.check_image(data)


def test_damage_is_found_behind_a_harmless_warning() -> None:
    """libjpeg prints its first warning alone: here, of a version of JFIF that it does not know."""
    odd = JPEG[:11] + b"\x09" + JPEG[12:]
    codec.check_image(odd)
    with pytest.raises(ValueError, match="damaged JPEG: Corrupt JPEG data"):
        codec.check_image(odd[:-200] + b"\xff\xd9")


@pytest.mark.parametrize(("padding", "sound"), [(bytes(7), True), (b"\xff" * 7, True), (b"\x21\x43" * 20, False)])
def test_only_padding_may_stand_before_the_end_marker(padding: bytes, sound: bool) -> None:
    """Other bytes there may be pixels of which the decoder has lost track."""
    with contextlib.nullcontext() if sound else pytest.raises(ValueError, match=r"[0-9]+ extraneous bytes before marker 0xd9"):
        codec.check_image(JPEG[:-2] + padding + JPEG[-2:])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_damage_inside_a_tiff_is_a_fault_though_the_decoder_returns_a_picture(compression: str) -> None:
    data = damaged(saved(smooth(np.random.default_rng(1), 96, 128), "tiff", compression=compression), 0.5, 300)
    assert codec.decode_image(data).shape == (96, 128, 3)
    with pytest.raises(ValueError, match="damaged TIFF: "):
        codec.check_image(data)


def test_the_decoders_lines_do_not_reach_the_terminal_and_those_of_others_do(capfd: pytest.CaptureFixture[str]) -> None:
    """Though another thread writes all the time: at a shared position of the file, its lines would replace the decoder's."""
    broken = JPEG[:-200] + b"\xff\xd9"
    done = threading.Event()

    def write() -> int:
        return next(number for number in itertools.count(1) if os.write(2, b"a line of another thread\n") and done.is_set())

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        try:
            for _ in range(40):
                with pytest.raises(ValueError, match="premature end of data segment"):
                    codec.check_image(broken)
        finally:
            done.set()
    lines = capfd.readouterr().err.splitlines()
    assert set(lines) == {"a line of another thread"}
    # A line is lost if its thread is caught between the choice of the file and the write: rarely more than one.
    assert written.result() - len(lines) <= 40


def test_a_label_of_any_depth_has_the_stored_values() -> None:
    bits = IDS % 2
    assert np.array_equal(codec.decode_label(saved(Image.fromarray(bits * np.uint8(255)).convert("1"), "tiff")), bits)
    palette = pictures.palette_of(IDS, np.random.default_rng(2))
    for data in (saved(palette, "png", bits=4), saved(palette, "bmp"), saved(palette, "tiff")):
        assert np.array_equal(codec.decode_label(data), IDS)
        assert not np.array_equal(codec.decode_image(data)[..., 0], IDS)  # the colours are others


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        (saved(IDS, "jpeg"), "a label must be a PNG, TIFF or BMP: JPEG changes the class ids"),
        (saved(COLOUR, "webp", lossless=True), "a label must be a PNG, TIFF or BMP: WebP changes the class ids"),
        (saved(COLOUR, "bmp"), "a label is an 8-bit image of one channel or a palette PNG, found RGB of 8 bits a channel"),
        (saved(COLOUR, "tiff"), "a label is an 8-bit image of one channel or a palette PNG, found RGB of 8 bits a channel"),
        (saved(IDS.astype(np.uint16), "tiff"), "one channel or a palette PNG, found grey of 16 bits a channel; store class ids"),
        (pictures.tiff(IDS, 0), "one channel or a palette PNG, found inverted grey of 8 bits"),
    ],
)
def test_a_label_that_does_not_hold_ids_is_refused(label: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        codec.decode_label(label)


def grey16(lowest: int, levels: int) -> bytes:
    """A 16-bit grey PNG whose values are the `levels` numbers from `lowest` on, as thermal cameras write them."""
    return saved((lowest + np.arange(60 * 60).reshape(60, 60) % levels).astype(np.uint16), "png")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (grey16(28_000, 1900), "16-bit image with values 28000 to 29899: as 8 bits, 8 of its 1900 levels are left: scale"),
        (grey16(0, 256), "16-bit image with values 0 to 255: as 8 bits, 1 of its 256 levels are left"),
        (pictures.tiff((COLOUR // 4).astype(np.uint16), 2), "as 8 bits, 1 of its [0-9]+ levels are left"),
    ],
)
def test_16_bits_of_which_little_is_left_are_a_fault(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        codec.check_image(data)


@pytest.mark.parametrize(
    "data",
    [
        pictures.tiff(COLOUR.astype(np.uint16) * 257, 2),
        saved((COLOUR[..., 0].astype(np.uint16) * 257), "png"),
        saved(np.full((4, 4), 29_000, np.uint16), "png"),  # nothing is lost of a single level
    ],
)
def test_16_bits_are_read_where_8_bits_hold_the_picture(data: bytes) -> None:
    assert codec.check_image(data).bits == 16
    assert codec.decode_image(data).dtype == np.uint8
