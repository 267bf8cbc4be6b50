"""The files of a source, listed once, and what their names say."""

import posixpath
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.data.classes import read_text
from pipeline.errors import SourceError, StorageError
from pipeline.storage.store import DANGLING, Object, Store

LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found"})
"""Names of files and folders that desktops and disks leave behind, in lower case."""
OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".jpe", ".mpo", ".apng",
                  ".ico", ".psd", ".ppm", ".pgm", ".pnm", ".svg", ".dng", ".cr2",
                  ".cr3", ".nef", ".arw", ".raw", ".exr", ".hdr", ".tga", ".npy", ".npz", ".mat", ".dcm", ".nii")  # fmt: skip
"""Endings of files that often hold images or labels and that are not read."""
UNFINISHED = ("~", ".tmp", ".part", ".crdownload", ".bak", ".swp")
"""Endings of copies and downloads that are not the file itself."""


@dataclass(frozen=True)
class Files:
    """The images or the labels in a folder and its subfolders."""

    folder: str
    """Key of the folder, without a slash at the end; empty for the whole source."""
    ends: str
    """Endings that may follow the stem in a file name, separated by `|`."""
    keys: dict[str, list[str]]
    """Stem (the path below the folder, without the ending, composed as in NFC) -> keys; more than one key is a fault."""

    @property
    def end(self) -> str:
        """The ending that a message proposes."""
        return self.ends.split("|", 1)[0]

    def own_stem(self, stem: str) -> str:
        """The stem as the file's name spells it: Unicode has composed and decomposed forms of the same letter."""
        name = self.keys[stem][0][len(self.folder) + bool(self.folder) :]
        return next(name[: -len(end)] for end in self.ends.split("|") if name.lower().endswith(end.lower()))


@dataclass(frozen=True)
class Listing:
    """The files of a source, listed once; after that, only text files are read from the store."""

    source: Store
    objects: tuple[Object, ...]
    """All files, sorted by key."""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(found.key for found in self.objects)

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.keys)

    @cached_property
    def dangling(self) -> frozenset[str]:
        """Links whose target does not exist."""
        return frozenset(found.key for found in self.objects if found.version == DANGLING)

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """File name without folders, in lower case -> keys."""
        found: dict[str, list[str]] = {}
        for key in self.keys:
            found.setdefault(posixpath.basename(key).lower(), []).append(key)
        return found

    @cached_property
    def folders(self) -> dict[str, str]:
        """Folder in lower case -> folder as stored, of the two upper levels; of two spellings, the one in lower case."""
        parts = {tuple(key.split("/")[:3][:-1]) for key in self.keys}
        upper = {"/".join(part[:depth]) for part in parts for depth in (1, 2) if len(part) >= depth}
        return {folder.lower(): folder for folder in sorted(upper)}

    def below(self, folder: str) -> Sequence[str]:
        """Keys in a folder and its subfolders."""
        if not folder:
            return self.keys
        # "0" follows "/" in ASCII, so this range holds exactly the keys that start with `folder/`.
        return self.keys[bisect_left(self.keys, f"{folder}/") : bisect_left(self.keys, f"{folder}0")]

    def files(self, folder: str, *ends: str) -> Files:
        """The files below `folder` with one of the endings `ends`; hidden files and litter are skipped."""
        found: dict[str, list[str]] = {}
        for key in self.below(folder):
            name = key[len(folder) + bool(folder) :]
            end = next((e for e in ends if name.lower().endswith(e.lower())), None)
            if end and not is_litter(name):
                found.setdefault(composed(name[: -len(end)]), []).append(key)
        return Files(folder, "|".join(ends), found)

    @cached_property
    def composed(self) -> dict[str, str]:
        """Key in Unicode's composed form -> key as stored."""
        return {composed(key): key for key in self.keys}

    def elsewhere(self, folder: str) -> str:
        """The fix for a folder without files: the data.source that contains it, if the source has it at a deeper level."""
        places = {key[:place] for key in self.keys if (place := key.find(f"/{folder}/")) >= 0}
        if len(places) == 1:
            return f"set data.source={self.source.url(places.pop())}"
        return "put them there, or correct data.source or data.layout"

    def inside(self, path: str) -> str:
        """The key that a path of a list means: it may be a full one, and Windows writes backslashes."""
        path = composed(path.strip())
        if path not in self.composed:
            path = path.replace("\\", "/")
        # DeepLab's lists of VOC start their paths with a slash.
        return posixpath.normpath(path.removeprefix(f"{self.source.root}/").lstrip("/"))

    def near(self, key: str, among: Collection[str] | None = None) -> str | None:
        """The key, one of `among`, that a path probably means: only its upper folders, or upper and lower case, differ."""
        path = f"/{key}".lower()
        same = [k for k in self.by_name.get(posixpath.basename(path), []) if among is None or k in among]
        return next((k for k in same if path.endswith(f"/{k}".lower()) or f"/{k}".lower().endswith(path)), None)

    def missing(self, key: str) -> str:
        """Fault of a file that a list names but the source lacks. If only the path differs, the fix names the right file."""
        near = self.near(key)
        fix = f"the source has {near}, write that" if near else "add it, or correct the line"
        return f"{self.source.url(key)}: no such file: {fix} (paths are relative to data.source)"


def list_source(source: Store) -> Listing:
    """All files of a source. Raises SourceError if there is none, StorageError if the store fails."""
    try:
        objects = source.listing()
    except StorageError as error:
        raise StorageError(f"data.source: {error}") from error
    if not objects or objects[0].key == "":
        state = "no such folder, or an empty one" if not source.is_s3 else "nothing below this prefix"
        raise SourceError([f"data.source = {source.root}: {state}: correct data.source"])
    if odd := [found.key.encode(errors="backslashreplace").decode() for found in objects if not is_text(found.key)]:
        raise SourceError([f"{source.url(key)}: the name is no UTF-8 text: rename the file" for key in odd])
    return Listing(source, tuple(objects))


def is_text(key: str) -> bool:
    """False for a name in another encoding than UTF-8, which no table or manifest can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in key)


def lines_of(store: Store, key: str) -> list[tuple[int, str]]:
    """(line number from 1, text) of each line of a text file that is not blank."""
    lines = read_text(store, key).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def dead_links(listing: Listing, keys: Iterable[str]) -> list[str]:
    """The faults of those keys that are links to nothing."""
    dead = [key for key in keys if key in listing.dangling and not is_litter(key)]
    fix = "restore the target, or delete the link"
    return [f"{listing.source.url(key)}: a link whose target does not exist: {fix}" for key in dead]


def is_litter(name: str) -> bool:
    """A hidden file, one that a desktop left behind, or an unfinished copy; `name` may have folders."""
    parts = name.lower().split("/")
    return any(part.startswith(".") or part in LITTER for part in parts) or parts[-1].endswith(UNFINISHED)


def ending(key: str) -> str:
    """The ending of a file name in lower case, with its dot; empty if it has none."""
    return posixpath.splitext(key)[1].lower()


def contents(keys: Iterable[str]) -> str:
    """The kinds of files as text: `12 .heic, 3 .txt`; empty if there is none."""
    counts = Counter(ending(key) or "without ending" for key in keys if not is_litter(key))
    return ", ".join(f"{number:,} {end}" for end, number in counts.most_common(4))


def overview(listing: Listing) -> str:
    """What lies in the upper folders of a source, as text: `images/: 12 .heic; masks/: 12 .json`."""
    found: dict[str, list[str]] = {}
    for key in listing.keys:
        folder = "/".join(key.split("/")[:-1][:2])
        found.setdefault(f"{folder}/" if folder else "at the top", []).append(key)
    kept = {folder: text for folder, keys in found.items() if not is_litter(folder) and (text := contents(keys))}
    more = f"; and {len(kept) - 6} more folders" if len(kept) > 6 else ""
    return "; ".join(f"{folder}: {text}" for folder, text in list(kept.items())[:6]) + more


def composed(text: str) -> str:
    """The text in Unicode's composed form: the two forms of `é` look the same and are different bytes."""
    return unicodedata.normalize("NFC", text)
