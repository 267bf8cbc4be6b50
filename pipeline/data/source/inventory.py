"""The account of a source: which files belong to samples, and which are left out and why."""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

from pipeline.data.export_classes import PARSERS
from pipeline.data.source.listing import OTHER_PICTURES, Listing, composed, ending, is_litter
from pipeline.data.source.names import PREVIEW_WORDS, is_longer, is_preview, words_of
from pipeline.data.source.pairing import Pair, Place, TextList
from pipeline.images.codec import SUFFIXES

SHOWN = 3
"""Names listed as examples."""
DEAD_LINKS = ("links whose target does not exist", "restore their targets, or delete the links")
UNKNOWN = "files with endings that are not read"
CONVERT = "if they are samples, convert images to PNG or JPEG and labels to PNG; otherwise move them to another folder"
MOVE = "if they are samples, move them to the folder of a split, or list them (data.lists)"
TABLES = frozenset({"classes.yaml", "classes.json", "objectInfo150.txt", *PARSERS})
"""Names of files that list classes."""


@dataclass(frozen=True, eq=False)
class Read:
    """What a split was read from."""

    split: str
    pairs: tuple[Pair, ...]
    """Empty for a split `test` without labels."""
    place: Place | None
    text: TextList | None
    """The list that names the samples, if there is one."""
    unlisted: frozenset[str]
    """Keys of the images and labels that would be samples if the list named them."""

    @cached_property
    def stems(self) -> frozenset[str]:
        """Names of its samples, images and labels, without folders and endings."""
        ids = (posixpath.basename(pair.sample_id) for pair in self.pairs)  # Cityscapes' previews have neither name of the pair
        return frozenset([*map(composed, ids), *(_stem(key) for pair in self.pairs for key in pair.keys)])

    @cached_property
    def folders(self) -> set[str]:
        """Folders of its images and of its labels."""
        return {self.place.images.folder, self.place.labels.folder} if self.place else set()


class LeftOut(NamedTuple):
    """Files that belong to no sample, for one reason."""

    split: str
    """The split in whose folders they lie; empty for the rest of the source."""
    kind: str
    keys: tuple[str, ...]
    fix: str
    """What to do if they are samples; empty if they do not look like samples."""


class Inventory(NamedTuple):
    """The account of a source: files seen = those of samples + text files + those left out."""

    samples: dict[str, int]
    """Images of each split; each has one label."""
    num_sample_files: int
    texts: tuple[str, ...]
    """Lists and class tables."""
    left_out: tuple[LeftOut, ...]

    def lines(self) -> tuple[str, ...]:
        """The account as text, one line for the whole and one for each group that is left out."""
        parts = ", ".join(f"{number:,} in {split}" for split, number in self.samples.items())
        lost = sum(len(group.keys) for group in self.left_out)
        seen = self.num_sample_files + len(self.texts) + lost
        first = f"{seen:,} seen: images with labels: {parts}; lists and class tables: {len(self.texts)}; left out: {lost:,}"
        return (f"{'files':<16}{first}", *(f"{'left out':<16}{_text(group)}" for group in self.left_out))

    def warnings(self) -> tuple[tuple[str, str], ...]:
        """(what, fix) of the groups that look like samples."""
        return tuple((f"left out: {_text(group)}", group.fix) for group in self.left_out if group.fix)


def _text(group: LeftOut) -> str:
    place = f"{group.split}: " if group.split else ""
    return f"{place}{group.kind} ({len(group.keys):,}): {examples(group.keys)}"


def examples(keys: Sequence[str]) -> str:
    """The first keys, and how many there are beyond them."""
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else "")


def take_inventory(listing: Listing, reads: Sequence[Read], *, own_names: bool) -> Inventory:
    """The account of all files of a listing.

    `own_names`: the folders are the user's own, so that pictures which no split reads are probably forgotten. The public data
    sets have folders that are not needed here.
    """
    used = {key for read in reads for pair in read.pairs for key in pair.keys}
    lists = {read.text.key for read in reads if read.text and read.text.store == listing.source}
    groups: dict[tuple[str, str, str], list[str]] = {}
    texts = []
    for key in listing.keys:
        if key in used:
            continue
        if key in lists or (posixpath.basename(key) in TABLES and not is_litter(key)):
            texts.append(key)
            continue
        home = _home(key, reads)
        reason = _reason(key, home, own_names=own_names) if key not in listing.dangling else DEAD_LINKS
        groups.setdefault((", ".join(read.split for read in home), *reason), []).append(key)
    samples = {read.split: len(read.pairs) for read in reads if read.pairs}
    left_out = [LeftOut(split, kind, tuple(keys), fix) for (split, kind, fix), keys in groups.items()]
    return Inventory(samples, len(used), tuple(texts), tuple(map(partial(_suspected, samples), left_out)))


def _suspected(samples: Mapping[str, int], group: LeftOut) -> LeftOut:
    """The group, with a fix if its unknown endings look like samples: in images and labels alike, or more than the samples."""
    wanted = sum(number for split, number in samples.items() if split in group.split.split(", "))
    twice = len(group.keys) > len(set(map(_stem, group.keys)))
    return group._replace(fix=CONVERT) if group.kind == UNKNOWN and (twice or len(group.keys) > wanted) else group


def _home(key: str, reads: Iterable[Read]) -> list[Read]:
    """The splits in whose folders the file lies: those of the deepest folder."""
    places = [(len(folder), read) for read in reads for folder in read.folders if not folder or key.startswith(f"{folder}/")]
    deepest = max((depth for depth, _ in places), default=0)
    return list(dict.fromkeys(read for depth, read in places if depth == deepest))


def _reason(key: str, home: Sequence[Read], *, own_names: bool) -> tuple[str, str]:
    """(kind, fix) of a file that belongs to no sample; the fix is empty if the file does not look like a sample."""
    end, stem = ending(key), _stem(key)
    if is_litter(key):
        return "hidden files, desktop files and unfinished copies", ""
    if not home:
        forgotten = own_names and end in SUFFIXES and not set(words_of(posixpath.dirname(key))) & PREVIEW_WORDS
        return "files in folders that no split reads", MOVE if forgotten else ""
    if any(key in read.unlisted for read in home):
        return "images and labels that no list names", "name them in a list, or move them to another folder"
    if not any(read.pairs for read in home):
        return "files of a split without labels", ""
    belongs = is_preview if end in (*SUFFIXES, *OTHER_PICTURES) else is_longer
    if any(stem in read.stems or belongs(stem, read.stems) for read in home):
        return "previews and other files of samples", ""
    if end in SUFFIXES and any(read.text for read in home):
        return "images without label that no list names", ""
    if end in SUFFIXES:
        return "pictures whose names do not fit the layout", "rename them as the layout wants, or list them (data.lists)"
    return (f"files {end}, which are not read", CONVERT) if end in OTHER_PICTURES else (UNKNOWN, "")


def _stem(key: str) -> str:
    return composed(posixpath.splitext(posixpath.basename(key))[0])
