"""The files that jobs.predict writes: the results of an image, and the list of all.

Each carries a seal, by which a rerun knows its own results and replaces no other file.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.evaluate import Predict
from pipeline.data.classes import CITYSCAPES, CITYSCAPES_CLASS_IDS, Color
from pipeline.errors import ConfigError
from pipeline.evaluation import figures
from pipeline.evaluation.inputs import CONFIDENCE, MASK, OVERLAY
from pipeline.images import codec, png
from pipeline.storage.store import Store

LIST = "predictions.jsonl"
"""Key of the list: a line of JSON about the call, then one about each predicted image. It is written last."""
FORMAT, VERSION = "ccnet-predictions", 1
_KEYWORD = b"tEXtccnet result\0"
_END = 12
"""Bytes of the chunk that ends a PNG."""


class Prediction(NamedTuple):
    """Addresses of one image's results, and what the list of all says of it."""

    mask_url: str
    """8-bit PNG at the image's size, in the form that `predict.masks` says."""
    overlay_url: str | None
    """The image with the class colours over it, if there is one."""
    confidence_url: str | None
    """8-bit PNG, if there is one: 255 times the probability of each pixel's class."""
    before: bool
    """An earlier call has made the same results, of the same image with the same weights."""
    image: str
    """What messages call the image."""
    sha256: str
    """Of the image's file."""
    height: int
    width: int
    pixels: list[int]
    """Pixels of each class."""


def sealed(file: bytes, image: str, made_of: str = "") -> bytes:
    """The PNG with a text chunk before its end: a hash of the PNG and of the address of the image whose result it is.

    `made_of`: a hash of what the result was computed of, which the chunk then has too. Chunks: PNG specification, section 5.3.
    """
    digest = hashlib.sha256(image.encode(errors="surrogateescape") + b"\0" + file + made_of.encode()).hexdigest()
    chunk = _KEYWORD + digest.encode() + (b" " + made_of.encode() if made_of else b"")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return file[:-_END] + chunk + file[-_END:]


def seal_of(data: bytes, image: str) -> str | None:
    """What a result of this image was made of, empty if it does not say so; None for any other file, or one that was changed."""
    start = data.rfind(_KEYWORD, -_END - 4 - len(_KEYWORD) - 200) - 4
    if start < 0:
        return None
    text, _, made_of = data[start + 4 + len(_KEYWORD) : -_END - 4].partition(b" ")
    found = made_of.decode("ascii", "replace")
    return found if text and sealed(data[:start] + data[-_END:], image, found) == data else None


def ends_of(form: Predict) -> tuple[str, ...]:
    """The endings of the names of an image's results, the mask's last."""
    return (*((OVERLAY,) if form.overlay else ()), *((CONFIDENCE,) if form.confidence else ()), MASK)


def mask_values(form: Predict, class_names: Sequence[str]) -> codec.UInt8:
    """Table uint8[K]: number of a class -> its value in a mask. Raises ConfigError where `cityscapes` cannot be written.

    Its evaluation takes any PNG in any folder whose name begins with `city_sequence_frame`, if there is one for each image
    (github.com/mcordts/cityscapesScripts: evaluation/evalPixelLevelSemanticLabeling.py, getPrediction).
    """
    if form.masks != "cityscapes":
        return np.arange(len(class_names), dtype=np.uint8)
    if {*class_names} != {*CITYSCAPES.names}:
        raise ConfigError(
            [f"predict.masks = cityscapes: needs the 19 classes of Cityscapes, found {len(class_names)}: "
             f"{', '.join(class_names[:3])}, ...: set predict.masks=ids or palette"]
        )  # fmt: skip
    if form.overlay or form.confidence:
        raise ConfigError(
            ["predict.masks = cityscapes: its server takes one PNG an image: set predict.overlay=false and "
             "predict.confidence=false (--no-overlay, without --confidence)"]
        )  # fmt: skip
    ids = dict(zip(CITYSCAPES.names, CITYSCAPES_CLASS_IDS, strict=True))
    return np.array([ids[name] for name in class_names], np.uint8)


def encoded(
    form: Predict, values: codec.UInt8, colors: Sequence[Color], image: codec.UInt8, planes: codec.UInt8
) -> dict[str, bytes]:
    """PNG files by ending. `planes`: uint8[1 or 2, H, W], the classes and, if it is asked for, the confidence."""
    mask = codec.encode_png(values[planes[0]])
    draw = {
        OVERLAY: lambda: codec.encode_png(figures.overlay(image, planes[0], colors)),
        CONFIDENCE: lambda: codec.encode_png(planes[1]),
        MASK: lambda: png.with_palette(mask, colors) if form.masks == "palette" else mask,
    }
    return {end: draw[end]() for end in ends_of(form)}


def classes_in(mask: bytes, values: codec.UInt8) -> codec.UInt8:
    """uint8[H, W] numbers of classes from the file of a mask."""
    stored = codec.decode_label(mask)
    table = np.zeros(256, np.uint8)
    table[values] = np.arange(len(values))
    classes: codec.UInt8 = table[stored]
    return classes


def held(output: Store, keys: Sequence[str]) -> dict[str, bytes]:
    """The files that are there under these keys."""
    found = {}
    for key in keys:
        try:
            found[key] = output.read(key)
        except FileNotFoundError:
            continue
    return found


def write_results(
    output: Store, files: Mapping[str, bytes], there: Mapping[str, bytes], image: str, made_of: Mapping[str, str]
) -> None:
    """Writes PNG files under their keys as results of an image, `made_of` what the hash of each key says.

    `there`: what `held` found under these keys. Raises FileExistsError if one of these is another file. They are not on the disk
    before the list is: a sync for each would take longer than a small image.
    """
    new = {key: sealed(file, image, made_of[key]) for key, file in files.items()}
    for key, data in there.items():
        # What a loss of power has left of a result is the beginning of the same bytes.
        if seal_of(data, image) is None and not new[key].startswith(data):
            raise FileExistsError(
                f"{output.url(key)} was not replaced: it is no result of this image, or was changed since: move it, or choose "
                "another predict.output"
            )
    for key, data in new.items():
        output.write(key, data, durable=False)


def list_there(output: Store) -> bytes | None:
    """The list of an earlier call; None if there is none. Raises ConfigError for another file of its name, or a changed list."""
    data = held(output, [LIST]).get(LIST)
    if data is not None and not _is_list(data):
        raise ConfigError(
            [f"{output.url(LIST)} would be replaced, but is no list of predictions, or was changed since: move it, or choose "
             "another predict.output"]
        )  # fmt: skip
    return data


def write_list(output: Store, facts: Mapping[str, Any], done: Sequence[Prediction]) -> None:
    """Writes the list unless it is there. Its first line has `facts`, the format, and a hash of the whole.

    Raises ConfigError as `list_there`.
    """

    def key(url: str | None) -> str | None:
        return url and url.removeprefix(output.url(""))

    lines = [
        {"image": each.image, "mask": key(each.mask_url), "overlay": key(each.overlay_url),
         "confidence": key(each.confidence_url), "sha256": each.sha256, "height": each.height, "width": each.width,
         "pixels": each.pixels}
        for each in done
    ]  # fmt: skip
    head = {"format": FORMAT, "version": VERSION, **facts}
    rest = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    data = json.dumps(head | {"seal": _seal_of_list(head, rest)}).encode() + b"\n" + rest
    if list_there(output) != data:
        output.settle()  # no list without the files that it names, even after a loss of power
        output.write(LIST, data)


def _is_list(data: bytes) -> bool:
    first, _, rest = data.partition(b"\n")
    try:
        head = json.loads(first)
    except ValueError:
        return False
    return isinstance(head, dict) and head.get("format") == FORMAT and head.pop("seal", "") == _seal_of_list(head, rest)


def _seal_of_list(head: Mapping[str, Any], rest: bytes) -> str:
    return hashlib.sha256(json.dumps(head).encode() + b"\n" + rest).hexdigest()
