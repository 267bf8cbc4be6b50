"""Matches the names of labels with those of their images. Names are stems: paths without the ending."""

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from pipeline.images.codec import SUFFIXES

IMAGE_WORDS = frozenset(
    {"image", "images", "img", "im", "sat", "rgb", "photo", "input", "original", "orig", "leftimg8bit", "0000"}
)
"""Words in the names of images that the names of their labels lack; `0000` is the first channel in nnU-Net's names."""
LABEL_WORDS = frozenset({
    "mask", "masks", "label", "labels", "labelid", "labelids", "labeltrainids", "seg", "segs", "segm", "segmap", "segmentation",
    "semantic", "gt", "gtfine", "gtcoarse", "groundtruth", "annotation", "annotations", "annot", "ann", "anno", "target", "matte",
    "id", "ids", "class", "classes",
})  # fmt: skip
"""Words in the names of labels that the names of their images lack."""
PREVIEW_WORDS = frozenset({
    "color", "colors", "colour", "colours", "colored", "colorized", "overlay", "overlays", "vis", "viz", "visualization",
    "visualizations", "preview", "previews", "blend", "blended", "instance", "instances", "instanceids", "panoptic", "pseudo",
    "depth", "heatmap", "thumb", "thumbs", "thumbnail", "thumbnails", "segmentationobject", "segmentationclassvisualization",
    "segmentationobjectvisualization",
})  # fmt: skip
"""Words in the names of files and folders that show a sample or hold something else than class ids."""
NEUTRAL = frozenset(end[1:] for end in SUFFIXES)
ADDED_WORDS = PREVIEW_WORDS | LABEL_WORDS | NEUTRAL
SURE_WORDS = LABEL_WORDS | NEUTRAL


def match(
    images: Collection[str], labels: Collection[str], suffix: str | None = None
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(image -> label, image -> labels that could all be its own), all of them stems.

    Equal stems are pairs. A label may have more words that mean "label", or the ending of its image (`a_mask`, `a.jpg`), an image
    more words that mean "image" (`a_sat`). Another addition counts only if all labels have it, one for each image. With
    `suffix`, exactly the labels `STEM + suffix` are taken.
    """
    stems = set(images)
    if suffix:
        return {stem: f"{stem}{suffix}" for stem in stems if f"{stem}{suffix}" in labels}, {}
    pairs = {stem: stem for stem in stems & set(labels)}
    cores = _cores(stems - pairs.keys())
    longer: dict[str, list[tuple[str, str]]] = {}
    for label in sorted(set(labels) - pairs.keys()):
        for base, addition in _readings(label):
            image = base if base in stems else cores.get(base)
            if image is not None:
                if image not in pairs:
                    longer.setdefault(image, []).append((label, addition))
                break
    several: dict[str, list[str]] = {}
    for image, found in longer.items():
        sure = [label for label, addition in found if set(words_of(addition)) <= SURE_WORDS]
        if len(sure) == 1:
            pairs[image] = sure[0]
        elif sure:
            several[image] = sure
    return (pairs, several) if pairs or several else (_same_addition(stems, labels, longer), {})


def _readings(label: str) -> Iterator[tuple[str, str]]:
    """(stem of the image, addition) of each way to read the name of a label, the longest stem first."""
    yield label, ""
    for place in separators(label):
        yield label[:place], label[place:]
    folder, name = posixpath.split(label)
    first = min(separators(name), default=None)
    if first is not None and name[:first].lower() in LABEL_WORDS:
        yield posixpath.join(folder, name[first + 1 :]), name[:first]


def _cores(stems: Collection[str]) -> dict[str, str]:
    """Stem without the word that means "image" -> stem, where only one stem has this core."""
    found: list[tuple[str, str]] = []
    for stem in stems:
        folder, name = posixpath.split(stem)
        cuts = list(separators(name))
        if cuts and name[cuts[0] + 1 :].lower() in IMAGE_WORDS:
            found.append((posixpath.join(folder, name[: cuts[0]]), stem))
        elif cuts and name[: cuts[-1]].lower() in IMAGE_WORDS:
            found.append((posixpath.join(folder, name[cuts[-1] + 1 :]), stem))
    uses = Counter(core for core, _ in found)
    return {core: stem for core, stem in found if uses[core] == 1 and core not in stems}


def _same_addition(
    stems: Collection[str], labels: Collection[str], longer: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, str]:
    """Pairs by an addition of unknown meaning (`a_L`, `a_manual1`), if all labels have it, one for each image."""
    additions = {addition for found in longer.values() for _, addition in found}
    if len(additions) != 1 or not any(map(str.isalpha, additions.pop())):
        return {}
    whole = len(longer) == len(stems) == len(labels)
    return {image: found[0][0] for image, found in longer.items()} if whole else {}


def separators(stem: str) -> Iterator[int]:
    """Positions of `_`, `-`, `.` and blanks in the file name of a stem, from the last to the first."""
    start = stem.rfind("/") + 1
    return (place for place in range(len(stem) - 1, start, -1) if stem[place] in "_-. ")


def words_of(text: str) -> list[str]:
    """The words of a name in lower case."""
    return [word for word in re.split(r"[_\-. /]+", text.lower()) if word]


def is_label(stem: str, suffix: str | None) -> bool:
    """True if a name ends with the suffix, or, without one, with a word that means "label"."""
    if suffix:
        return stem.endswith(suffix)
    cut = next(separators(stem), None)
    return cut is not None and stem[cut + 1 :].lower() in LABEL_WORDS


def is_longer(stem: str, stems: Collection[str]) -> bool:
    """True if the name is one of `stems` and an addition."""
    return any(stem[:place] in stems for place in separators(stem))


def is_preview(stem: str, stems: Collection[str]) -> bool:
    """True if the name is one of `stems` and an addition of words for previews or labels, such as `_color`."""
    return any(stem[:cut] in stems and set(words_of(stem[cut:])) <= ADDED_WORDS for cut in separators(stem))
