"""What lies in a folder of images and masks: its layout, its splits, the sizes of its images, its classes."""

import os
import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from pipeline import own_cores
from pipeline.config.base import Storage, has_scheme
from pipeline.data.classes import ADE20K_BASES, ADE20K_INFO, classes
from pipeline.data.export_classes import PARSERS, find_tables
from pipeline.data.layouts import IMAGE_FOLDERS, NAMES, Samples, find_samples
from pipeline.data.proposal import SWAPPED, TABLE, propose
from pipeline.data.source.listing import Listing, is_litter, list_source
from pipeline.data.source.pairing import POLYGONS
from pipeline.errors import SourceError
from pipeline.images.files import read_header
from pipeline.storage.probe import check_readable
from pipeline.storage.store import Store, open_store

FRACTIONS = (0.2, 0.3, 0.4, 0.5)
"""Shares of the samples that become `val` in a folder without one; the first that leaves images in both."""
NO_VAL = re.compile(r"no split `|^data\.val_fraction")
"""The first fault of a source without a split `val`, or with one that got no image."""
NO_PAIRS = (
    "no images with masks: put the images into images/ and the masks into masks/, with the same names, or side by side with a "
    "suffix such as _mask; the README has more forms"
)
ALIKE = 12
"""From this number on, images of which none can be kept apart are copies of one image, or versions of one (`cut_val`)."""
SIZES_READ = 200
"""Images whose headers are read."""


class Folder(NamedTuple):
    """What lies in a source."""

    address: str
    layout: str
    val_fraction: float | None
    """Share of the samples that becomes the split `val`; None if the source has one."""
    num_images: dict[str, int]
    """Images by split."""
    num_bytes: int
    """Bytes of images and labels."""
    size: tuple[int, int]
    """Median (height, width)."""
    largest: tuple[int, int]
    """(height, width) of the image with the most pixels."""
    class_names: tuple[str, ...]
    entries: list[dict[str, Any]] | None
    """The proposed class table; None if the source or its layout has one."""
    notes: list[str]
    """What is doubtful, each in a sentence with the way out."""


def look(address: str, storage: Storage) -> Folder:
    """Lists the source, reads headers of images and the labels if it has no class table. Raises StorageError, SourceError."""
    if not has_scheme(address) and not os.path.isdir(address):
        state = "is a file" if os.path.exists(address) else "no such folder"
        raise SourceError([f"{address}: {state}: give the folder that holds the images and the masks"])
    store = open_store(address, storage)
    check_readable(store)
    listing = list_source(store)
    while inner := _only_folder(listing):
        store = store.join(inner)
        listing = list_source(store)
    layout = recognise(listing)
    found, fraction = _split(layout, store, listing)
    every = [pair for pairs in found.splits.values() for pair in pairs]
    names, entries, notes = _classes(layout, store, [pair.label for pair in every])
    with ThreadPoolExecutor(own_cores()) as pool:
        images = [pair.image for pair in every[:: -(-len(every) // SIZES_READ)]]
        sizes = [size for size in pool.map(partial(_size, store), images) if size]
    if not sizes:
        raise SourceError([f"{store.url(images[0])}: cannot be read as an image, nor can {len(images) - 1} others"])
    return Folder(
        address=store.root,
        layout=layout,
        val_fraction=fraction,
        num_images={split: len(pairs) for split, pairs in found.splits.items()},
        num_bytes=sum(each.size for each in found.objects.values()),
        size=(round(statistics.median(h for h, _ in sizes)), round(statistics.median(w for _, w in sizes))),
        largest=max(sizes, key=lambda size: size[0] * size[1]),
        class_names=names,
        entries=entries,
        notes=[f"{what} ({fix})" for what, fix in found.inventory.warnings()] + notes,
    )


def _only_folder(listing: Listing) -> str | None:
    """The folder that holds all files of a source, as the unpacked archive of a data set often has; None if there is none."""
    tops = {key.partition("/")[0] for key in listing.keys if not is_litter(key)}
    top = tops.pop() if len(tops) == 1 else ""
    usual = {*IMAGE_FOLDERS, *(name for names in NAMES.values() for name in names)}
    return top if top and listing.below(top) and top.lower() not in usual else None


def recognise(listing: Listing) -> str:
    """The layout whose own folders a source has; `folders` if it has none of them."""
    below = listing.below
    own = any(key in listing.known for key in (TABLE, *PARSERS))  # then the classes are not those of the layout
    if below("leftImg8bit") and below("gtFine"):
        return "cityscapes"
    if any(f"{base}{ADE20K_INFO}" in listing.known for base in ADE20K_BASES):
        return "ade20k"
    if not own and any(re.fullmatch(r"(VOCdevkit/)?(VOC2012/)?ImageSets/Segmentation/train\.txt", key) for key in listing.keys):
        return "voc"
    if not own and below("train") and below("trainannot"):
        return "camvid"
    return "folders"


def _classes(layout: str, store: Store, labels: list[str]) -> tuple[tuple[str, ...], list[dict[str, Any]] | None, list[str]]:
    """Names of the classes; where no table lists them, also the proposed table and what is doubtful about it."""
    try:
        return classes(layout, store).names, None, []
    except SourceError:
        if store.exists(TABLE) or find_tables(store):
            raise
    found = propose(store, labels)
    return tuple(entry["name"] for entry in found.entries if "name" in entry), found.entries, found.notes


def _split(layout: str, store: Store, listing: Listing) -> tuple[Samples, float | None]:
    """The samples, and the share of them that becomes `val` if the source has no such split."""
    try:
        return find_samples(layout, store, {}, listing=listing), None
    except SourceError as error:
        faults = error
    for fraction in FRACTIONS:
        if not NO_VAL.search(faults.faults[0]):
            break
        try:
            return find_samples(layout, store, {}, val_fraction=fraction, listing=listing), fraction
        except SourceError as error:
            faults = error
    if "no split `train`" in faults.faults[0] and POLYGONS not in faults.faults[0]:
        raise SourceError([f"{store.root}: {NO_PAIRS}", faults.faults[-1]]) from faults
    if counts := re.match(r"data\.val_fraction.*gets (\d+) images and val (\d+)", faults.faults[0]):
        if (number := sum(map(int, counts.groups()))) >= ALIKE:
            raise SourceError([f"{store.root}: its {number} images are all the same: {SWAPPED}"]) from faults
        why = "too few images, or all alike, to keep some of them apart for a score"
        raise SourceError([f"{store.root}: {why}: add images with masks, or a split `val`"]) from faults
    raise faults


def _size(store: Store, key: str) -> tuple[int, int] | None:
    """(height, width) of an image; None if it cannot be read."""
    try:
        header = read_header(store.read(key))
    except Exception:  # of any type: jobs.prepare names each faulty file
        return None
    return header.height, header.width
