"""Pairs images with labels: by their names, or as a list says."""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from pipeline.data.source.listing import OTHER_PICTURES, Files, Listing, composed, contents, ending, lines_of, overview
from pipeline.data.source.names import is_label, is_preview, match, separators
from pipeline.images.codec import LABEL_SUFFIXES, SUFFIXES
from pipeline.images.colored_labels import NO_MASK
from pipeline.storage.store import Store

POLYGONS = (
    "polygons and boxes are not read, and no command imports them: export masks from the annotation tool, or draw them as PNG "
    "masks of class ids, labelme's with its labelme2voc.py, COCO's with pycocotools' annToMask, YOLO's with cv2.fillPoly"
)
LISTS = "write a list of `IMAGE LABEL` lines and set data.lists.{split}=LIST"


@dataclass(frozen=True)
class Pair:
    """One sample: keys of the image and of its label, relative to the source."""

    sample_id: str
    image: str
    label: str

    @property
    def keys(self) -> tuple[str, str]:
        """Keys of image and label."""
        return self.image, self.label


class Place(NamedTuple):
    """Where the images and labels of a split lie."""

    images: Files
    labels: Files
    list: str | None = None
    """Key of the text file that lists the samples; without it, every image is one."""
    short_ids: bool = False
    """The sample id is the name without folders."""

    def is_there(self, listing: Listing) -> bool:
        """True if the source has the list, or files in the folders."""
        return self.list in listing.known if self.list else bool(self.images.keys or self.labels.keys)


class TextList(NamedTuple):
    """A text file that lists samples, in the source or elsewhere."""

    store: Store
    key: str
    setting: str = ""
    """`data.lists.train = LIST` if a setting names it; empty for a list of the layout."""


class Found(NamedTuple):
    """The pairs of a split, the faults, and the files that would be pairs if a list named them."""

    pairs: list[Pair]
    faults: list[str]
    unlisted: frozenset[str] = frozenset()


def beside(files: Files, suffix: str | None) -> Place:
    """The images and labels of a folder that holds both: labels end with `suffix`, or with a word that means "label"."""
    ends = {
        stem: [k for k in keys if k.lower().endswith(LABEL_SUFFIXES)]
        for stem, keys in files.keys.items()
        if is_label(stem, suffix)
    }
    labels = {stem: keys for stem, keys in ends.items() if keys}
    images = {stem: keys for stem, keys in files.keys.items() if not is_label(stem, suffix)}
    return Place(Files(files.folder, files.ends, images), Files(files.folder, "|".join(LABEL_SUFFIXES), labels))


def by_folder(listing: Listing, place: Place, split: str, suffix: str | None) -> Found:
    """Pairs of all images and labels of two folders; neither pairs nor faults for `test` without labels."""
    images, labels, url = place.images, place.labels, listing.source.url
    if split == "test" and not labels.keys:
        return Found([], [])
    faults = []
    for files in (images, labels):
        if not files.keys:
            lies = contents(listing.below(files.folder))
            state = f" ({lies} there)" if lies else ""
            faults.append(f"{url(files.folder)}: no files *{files.ends}{state}: {_fix_of_none(listing, place, files, split)}")
        faults += [fault for stem in sorted(files.keys) for fault in same_names(files, listing.source, stem)]
    pairs, several = match(images.keys, labels.keys, suffix)
    if several:
        faults.append(_ambiguous(listing, place, split, several))
    elif images.keys and labels.keys:
        faults += _unpaired(listing, place, split, pairs, suffix)
    return Found([pair_of(place, image, label) for image, label in pairs.items()], faults)


def _fix_of_none(listing: Listing, place: Place, files: Files, split: str) -> str:
    """The fix for a folder that has no images, or no labels."""
    below = listing.below(files.folder)
    kinds, labels = {ending(key) for key in below}, files is place.labels
    if other := next((key for key in below if key.lower().endswith(LABEL_SUFFIXES if labels else SUFFIXES)), None):
        own = "set data.layout=folders and write a classes.yaml with the ids of these labels" if labels else "rename the images"
        return f"{other} and the others have other names: correct data.layout, or {own}"
    if labels and kinds & {*SUFFIXES}:
        return f"JPEG and WebP change class ids: {NO_MASK}"
    if kinds & {*OTHER_PICTURES, *SUFFIXES}:
        return f"convert them to PNG{', value = class id' if labels else ' or JPEG'}"
    if labels and has_polygons(listing, below or listing.keys):
        return POLYGONS
    if below or not labels or not place.images.keys:
        return listing.elsewhere(files.folder)
    unlabelled = f"; if {split} has no labels, move it to a folder `test`" if split == "val" else ""
    lies = f"what lies there: {overview(listing)}"
    return f"{listing.elsewhere(files.folder)}; or {LISTS.format(split=split)} ({lies}){unlabelled}"


def has_polygons(listing: Listing, keys: Sequence[str]) -> bool:
    """True if some of the files hold polygons, by their names: as a picture but .json, .xml or .txt, or as COCO's."""
    texts = [_name(key) for key in keys if ending(key) in (".txt", ".json", ".xml")]
    pictures = {_name(key) for key in listing.keys if ending(key) in (*SUFFIXES, *OTHER_PICTURES)} if texts else set()
    return any(name in pictures or name.startswith("instances_") or name.endswith(".coco") for name in texts)


def _name(key: str) -> str:
    return posixpath.splitext(posixpath.basename(key))[0]


def _ambiguous(listing: Listing, place: Place, split: str, several: Mapping[str, Sequence[str]]) -> str:
    """The fault of an image with more than one label, for the first of them."""
    image, choice = min(several.items())
    names = ", ".join(posixpath.basename(place.labels.keys[label][0]) for label in choice)
    longer = [label[len(image) :] for label in choice if label.startswith(image)]
    setting = f"set data.label_suffix={longer[0]}, or " if longer else ""
    where = listing.source.url(place.images.keys[image][0])
    return f"{where}: has {len(choice)} labels: {names}: {setting}{LISTS.format(split=split)}"


def _unpaired(listing: Listing, place: Place, split: str, pairs: Mapping[str, str], suffix: str | None) -> list[str]:
    """Faults of the images and labels that are in no pair; previews of a sample are none."""
    url, images, labels = listing.source.url, place.images, place.labels
    bare = sorted(stem for stem in images.keys.keys() - pairs.keys() if not is_preview(stem, pairs.keys()))
    taken = set(pairs.values())
    paired = pairs.keys() | taken
    lost = sorted(stem for stem in labels.keys.keys() - taken if not is_preview(stem, paired) and stem.endswith(suffix or ""))
    twins = {stem.lower(): stem for stem in lost}
    owners = Counter(next((s[:cut] for cut in separators(s) if s[:cut] in images.keys), "") for s in lost)
    parted = [stem for stem, number in owners.items() if stem and number > 1]
    if not pairs and parted:
        several = ", ".join(posixpath.basename(labels.keys[s][0]) for s in lost if s.startswith(parted[0]))
        fix = "one mask per class or object is not read: draw them into one mask, value = class id"
        return [f"{url(images.keys[parted[0]][0])}: has several masks: {several}: {fix}"]
    if not pairs and not any(stem.lower() in twins for stem in bare) and len(bare) > 1 and len(labels.keys) > 1:
        names = f"{images.keys[bare[0]][0]}, {next(iter(labels.keys.values()))[0]}"
        return [f"{url(images.folder)}: no image has a label of its name ({names}): rename the labels like their images, set "
                f"data.label_suffix to what labels have after it, or {LISTS.format(split=split)}"]  # fmt: skip
    inside = f"{labels.folder}/" if labels.folder else ""
    others = {composed(posixpath.splitext(key)[0][len(inside) :]): key for key in listing.below(labels.folder)}
    faults = []
    for stem in bare:
        other, twin = others.get(stem), twins.get(stem.lower())
        fix = f"add {url(inside)}{stem}{suffix or ''}{labels.end}"
        if twin:
            fix = f"{url(labels.keys[twin][0])} differs in upper and lower case only: rename it"
        elif other and ending(other) not in LABEL_SUFFIXES and inside != f"{images.folder}/":
            fix = f"{url(other)} is no label file: export it again as PNG, value = class id"
        faults.append(f"{url(images.keys[stem][0])}: image without label: {fix}")
    known = {stem.lower() for stem in bare}
    raw = {composed(posixpath.splitext(key)[0]): key for key in listing.below(images.folder) if ending(key) in OTHER_PICTURES}
    for stem in lost:
        other = raw.get(posixpath.join(images.folder, stem.removesuffix(suffix or "")))
        fix = f"{url(other)} is not read: convert it to PNG or JPEG" if other else f"add it to {url(images.folder)}"
        if stem.lower() not in known:
            faults.append(f"{url(labels.keys[stem][0])}: label without image: {fix}")
    return faults


def pair_of(place: Place, image: str, label: str) -> Pair:
    """The pair of two stems. Its sample id is spelled as the image's name."""
    stem = place.images.own_stem(image)
    return Pair(posixpath.basename(stem) if place.short_ids else stem, place.images.keys[image][0], place.labels.keys[label][0])


def same_names(files: Files, source: Store, stem: str) -> list[str]:
    """Faults of the files that share a stem."""
    first, *extras = files.keys.get(stem, [""])
    return [f"{source.url(k)}: same name as {posixpath.basename(first)}: a sample has one file" for k in extras]


def shared_ids(source: Store, pairs: Sequence[Pair]) -> list[str]:
    """Faults of pairs that share a sample id (a Cityscapes id in two cities, `a.png` and `a.jpg`). `pairs` must be sorted."""
    return [
        f"{source.url(b.image)}: has the sample id `{b.sample_id}` of {source.url(a.image)}: rename one"
        for a, b in pairwise(pairs)
        if a.sample_id == b.sample_id
    ]


def by_list(listing: Listing, text: TextList, place: Place, suffix: str | None) -> Found:
    """Pairs that a text file lists, one a line: a sample id, the file name or path of an image, or `IMAGE LABEL` paths."""
    where = text.store.url(text.key)
    try:
        lines = lines_of(text.store, text.key)
    except FileNotFoundError:
        fix = (
            f"{text.setting}: write a path below data.source, a full path or an s3:// address"
            if text.setting
            else f"it lists the sample ids; {listing.elsewhere(posixpath.dirname(text.key))}"
        )
        return Found([], [f"{where}: no such file: {fix}"])
    if not lines:
        wanted = "`IMAGE LABEL` pair of paths" if text.setting else "sample id (image name without suffix)"
        return Found([], [f"{where}: lists no sample: write one {wanted} per line"])
    named = any(_image_of(line, place.images, listing) for _, line in lines)
    if _are_files(fields(lines[0][1], listing), listing) or (text.setting and not named):
        return _by_pairs(listing, where, lines)
    return _by_names(listing, where, lines, place, suffix)


def _by_names(listing: Listing, where: str, lines: Sequence[tuple[int, str]], place: Place, suffix: str | None) -> Found:
    """Pairs of the images that a list names, with or without folder and ending."""
    images, labels = place.images, place.labels
    matched, several = match(images.keys, labels.keys, suffix)
    known = {key for keys in images.keys.values() for key in keys}
    faults: list[str] = []
    first: dict[str, int] = {}
    for number, line in lines:
        spot, stem = f"{where}: line {number}: `{line}`", _image_of(line, images, listing)
        own = line if stem is None else stem
        if first.setdefault(own, number) != number:
            faults.append(f"{spot}: is in line {first[own]} already: delete one")
            continue
        if stem is None and (near := listing.near(listing.inside(line), known)):
            faults.append(f"{spot}: no such image: the source has {near}, write that")
            continue
        for kind, files, ends, found in (
            ("image", images, images.ends, stem is not None),
            ("label", labels, labels.end, own in matched),
        ):
            if not found:
                address = listing.source.url(f"{files.folder}/{own}" if files.folder else own)
                choice = f" ({' and '.join(several[own])} could be it: set data.label_suffix)" if own in several else ""
                faults.append(f"{spot}: no {kind} {address}{ends}{choice}: add it, or correct the line")
        faults += same_names(images, listing.source, own) + same_names(labels, listing.source, matched.get(own, own))
    pairs = [pair_of(place, stem, matched[stem]) for stem in first if stem in matched]
    rest = [pair_of(place, image, label) for image, label in matched.items() if image not in first]
    return Found(pairs, faults, frozenset(key for pair in rest for key in pair.keys))


def _image_of(line: str, images: Files, listing: Listing) -> str | None:
    """Stem of the image that a line names by id, file name or path."""
    text = listing.inside(line)
    inner = text.removeprefix(f"{images.folder}/")
    names = [form for name in (text, inner) for form in (name, name[: -len(ending(name))] if ending(name) in SUFFIXES else name)]
    return next((name for name in names if name in images.keys), None)


def fields(line: str, listing: Listing) -> list[str]:
    """The paths of a line, which a tab, blanks, a comma or a semicolon separates."""
    ways = [line.split("\t")] if "\t" in line else [line.split(), line.split(","), line.split(";")]
    paths = [[listing.inside(part) for part in way] for way in ways]
    two = [way for way in paths if len(way) == 2]
    return next((way for way in two if _are_files(way, listing)), next(iter(two), paths[0]))


def _are_files(paths: Sequence[str], listing: Listing) -> bool:
    return len(paths) == 2 and all(path in listing.composed for path in paths)


def _by_pairs(listing: Listing, where: str, lines: Sequence[tuple[int, str]]) -> Found:
    """Pairs of `IMAGE LABEL` lines (github.com/speedinghzl/CCNet: dataset/list/; DeepLab's lists of VOC)."""
    faults: list[str] = []
    first: dict[str, int] = {}
    labels: dict[str, str] = {}
    for number, line in lines:
        spot, paths = f"{where}: line {number}", fields(line, listing)
        if len(paths) != 2:
            faults.append(f"{spot}: {len(paths)} fields, not `IMAGE LABEL`: write two, with a tab between if a name has blanks")
            continue
        image, label = (listing.composed.get(path, path) for path in paths)
        if first.setdefault(image, number) != number:
            faults.append(f"{spot}: image {image} is in line {first[image]} already: delete one")
            continue
        labels[image] = label
        faults += [f"{spot}: {listing.missing(path)}" for path in (image, label) if path not in listing.known]
    stems = {image: posixpath.splitext(image)[0] for image in labels}
    uses = Counter(posixpath.basename(stem) for stem in stems.values())
    short = {image: name if uses[name := posixpath.basename(stem)] == 1 else stem for image, stem in stems.items()}
    return Found([Pair(short[image], image, label) for image, label in labels.items()], faults)
