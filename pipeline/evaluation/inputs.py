"""The images that jobs.predict reads, and the names of their results.

The result of an image is named after the image alone: whatever other images lie there, `cam.jpg` gives `cam.png`.
"""

import logging
import os
import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from pipeline.config.base import Storage
from pipeline.config.config import Config
from pipeline.data.manifest import Manifest
from pipeline.data.shards import Row
from pipeline.data.source.listing import is_litter
from pipeline.errors import ConfigError, SampleError
from pipeline.evaluation.inference import known_split
from pipeline.images.codec import SUFFIXES
from pipeline.loading.samples import open_samples
from pipeline.storage.probe import check_readable
from pipeline.storage.store import Store, open_store

logger = logging.getLogger(__name__)
MASK, OVERLAY, CONFIDENCE = ".png", "_overlay.png", "_confidence.png"
"""Endings of the names of results."""


class Input(NamedTuple):
    """An image to predict."""

    key: str
    """Key below the folder of `predict.images`, or sample id."""
    number: int
    """Position in the listing, or in the split."""
    address: str
    """What messages call it: its full address, or data set, split and sample id."""
    name: str
    """Key of its results without their endings."""


class File(NamedTuple):
    """An image with what reads its file."""

    image: Input
    read: Callable[[], bytes]


class Inputs(NamedTuple):
    """The images to predict, and where they are."""

    source: Store | None
    """The folder or prefix of `predict.images`; None for the samples of `evaluate.split`."""
    images: list[Input]
    faults: list[str]
    """Images that are not predicted, because another one has the same result."""


def find_inputs(config: Config, manifest: Manifest, output: Store, ends: Sequence[str]) -> Inputs:
    """The images of `predict.images`, or of `evaluate.split` if that is not set, up to `predict.limit`. Logs what is left out.

    `ends`: the endings of the names of results. Raises ConfigError if there is no image, or if results in `output` could replace
    images or be taken for them.
    """
    if config.predict.images:
        named = f"predict.images = {config.predict.images}"
        source, found = _of_folder(config.predict.images, config.storage, output, named)
    else:
        source, found = None, _of_split(config, manifest, output)
    chosen, twins = found[: config.predict.limit], _twins(found, ends)
    if len(chosen) < len(found):
        logger.warning("predict.limit = %d leaves out %d of %d images", len(chosen), len(found) - len(chosen), len(found))
    return Inputs(source, *_apart(chosen, twins))


def find_files(addresses: Sequence[str], storage: Storage, output: Store, ends: Sequence[str]) -> list[Inputs]:
    """The images of files, folders and prefixes, each with its source. Raises ConfigError as `find_inputs` does."""
    parts = [_of_folder(address, storage, output, address) for address in addresses]
    numbers = count()
    found = [(source, [each._replace(number=next(numbers)) for each in images]) for source, images in parts]
    twins = _twins([each for _, images in found for each in images], ends)
    return [Inputs(source, *_apart(images, twins)) for source, images in found]


def _apart(images: Sequence[Input], twins: dict[int, str]) -> tuple[list[Input], list[str]]:
    """(images with a result of their own, a sentence for each of the others)."""
    faults = [f"{each.address}: its result would be that of {twins[each.number]} too: rename one of the two"
              for each in images if each.number in twins]  # fmt: skip
    return [each for each in images if each.number not in twins], faults


def _of_split(config: Config, manifest: Manifest, output: Store) -> list[Input]:
    split = known_split(config, manifest)
    if config.data.layout != "generated":
        _refuse_inside(output, open_store(str(config.data.source), config.storage), "data.source")
    entries = open_samples(config, manifest, split).index.entries(range(manifest.num_images(split)))
    where = f"{config.data.name} {split}"
    return [Input(e.sample_id, number, f"{where} {e.sample_id}", e.sample_id) for number, e in enumerate(entries)]


def _of_folder(address: str, storage: Storage, output: Store, named: str) -> tuple[Store, list[Input]]:
    """The store and the images of an address, which messages call `named`."""
    source, keys = _listed(address, storage)
    left_out = [key for key in keys if is_litter(key) or not key.lower().endswith(SUFFIXES)]
    found = [Input(key, number, source.url(key), posixpath.splitext(key)[0])
             for number, key in enumerate(sorted({*keys} - {*left_out}))]  # fmt: skip
    text = f"files left out: {_counted(left_out)}" if left_out else ""
    if not found:
        raise ConfigError([f"{named}: no image found{text and '; '}{text}; {', '.join(SUFFIXES)} are read"])
    if text:
        logger.warning("%s: %s", named, text)
    if source.root == open_store(address, storage).root:
        _refuse_inside(output, source, "predict.images")
    read, written = ([store.url(key) for key in keys] for store, keys in (
        (source, [each.key for each in found]), (output, [each.name for each in found])))  # fmt: skip
    if (source.is_s3, source.endpoint) == (output.is_s3, output.endpoint) and (both := _folders(read) & _folders(written)):
        raise ConfigError([f"predict.output = {output.root}: results would lie among the images in {min(both)}: {_ELSEWHERE}"])
    return source, found


def _listed(address: str, storage: Storage) -> tuple[Store, list[str]]:
    """The store and the keys of a folder or prefix, or of one file. Raises StorageError if there is none."""
    source = open_store(address, storage)
    keys = source.list()
    parent, _, name = source.root.rpartition("/")
    if not any(keys) and parent.strip("/") and not parent.endswith("/"):
        folder = open_store(parent, storage)
        if keys or (name.lower().endswith(SUFFIXES) and folder.exists(name)):
            return folder, [name]
    if not keys:
        check_readable(source, "predict.images")
    return source, keys


def _counted(keys: Iterable[str]) -> str:
    """`2 hidden (first: ._a.jpg), 1 *.txt (first: b.txt)`."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        ending = posixpath.splitext(key)[1].lower()
        kinds.setdefault("hidden" if is_litter(key) else f"*{ending}" if ending else "without an ending", []).append(key)
    return ", ".join(f"{len(found)} {kind} (first: {found[0]})" for kind, found in kinds.items())


def _twins(found: Sequence[Input], ends: Sequence[str]) -> dict[int, str]:
    """Number of each image that shares a result with another image -> address of the other one."""
    owners: dict[str, list[Input]] = {}
    for each in found:
        for end in ends:
            owners.setdefault(each.name + end, []).append(each)
    return {one.number: other.address for those in owners.values() for one in those for other in those if other is not one}


_ELSEWHERE = "they could replace images or be taken for images; choose another folder"


def _refuse_inside(output: Store, images: Store, setting: str) -> None:
    """Raises ConfigError if `output` is the folder or prefix of the images or lies in it."""
    if output.is_s3 != images.is_s3 or output.endpoint != images.endpoint:
        return
    if output.is_s3:
        inside = f"{output.root}/".startswith(f"{images.root.rstrip('/')}/")
    else:  # by identity, because a folder may have several names: links, mounts, letter case
        path, root = Path(output.root).resolve(), Path(images.root)
        inside = root.exists() and any(above.exists() and above.samefile(root) for above in (path, *path.parents))
    if inside:
        raise ConfigError([f"predict.output = {output.root}: results would lie in {setting} = {images.root}: {_ELSEWHERE}"])


def _folders(addresses: Collection[str]) -> set[str]:
    """The folders of files, links resolved, or the prefixes of objects."""
    folders = {posixpath.dirname(address) for address in addresses}
    return {folder if "://" in folder else os.path.realpath(folder) for folder in folders}


def files_of_store(source: Store, images: Sequence[Input]) -> Iterator[File]:
    return (File(each, partial(source.read, each.key)) for each in images)


def files_of_split(config: Config, manifest: Manifest, images: Sequence[Input]) -> Iterator[File]:
    """Those of `evaluate.split`; reading one that is missing or corrupt raises SampleError."""
    rows = open_samples(config, manifest, config.evaluate.split).ahead([each.number for each in images])
    return (File(each, partial(_image_of, row)) for each, row in zip(images, rows, strict=True))


def _image_of(row: Row | SampleError) -> bytes:
    if isinstance(row, SampleError):
        raise row
    return row.image
