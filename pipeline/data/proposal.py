"""Proposes a class table from the labels of a source that has none."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline import own_cores
from pipeline.config.config import Config
from pipeline.config.settings_yaml import flow
from pipeline.data.export_classes import find_tables
from pipeline.data.source.find import find_labels
from pipeline.errors import SourceError
from pipeline.formatting import percent
from pipeline.images import codec
from pipeline.images.codec import IGNORE
from pipeline.images.colored_labels import Color, colors_of
from pipeline.storage.store import Store

MOST_READ = 2000
"""Labels that are read; of more, as many are taken at equal distances."""
MOST_CLASSES = 64
"""More values than this are seldom classes: masks that were smoothed, photos, or numbers of objects."""
SPREAD = 20
"""Ids that all differ by at least this much are classes spread over 0 to 255, as tools write them for the eye."""
FEW, MANY_OBJECTS = 0.9, 8
"""Labels of numbered objects: this share of them holds 0, 1, ... n without a gap, and the largest n is at least this."""
BETWEEN = 0.1
"""Largest share of pixels between two extreme values for which they come from smoothing."""
MANY_BETWEEN, BETWEEN_OF_SMALL = 8, 0.4
"""From this number of values between on, the largest share is this one: in small masks, edges take more of the pixels."""
SWAPPED = "are images and masks swapped? Rename the folders, or list the pairs (data.lists)"
TABLE = "classes.yaml"


class Proposal(NamedTuple):
    """A class table, made from what the labels hold."""

    entries: list[dict[str, Any]]
    """`{id, name}` with `color` or `ignore`, as `data.classes` and classes.yaml have them."""
    notes: list[str]
    """What is doubtful, each in a sentence with the way out."""


class _Held(NamedTuple):
    """What one label holds."""

    ids: npt.NDArray[np.int64] | None
    """Pixels by id int64[256]; None for a label of three channels."""
    colors: dict[Color, int]
    """Pixels by RGB colour, of a label of three channels."""

    def as_ids(self) -> npt.NDArray[np.int64]:
        """Pixels by id int64[256], of three equal channels too."""
        if self.ids is not None:
            return self.ids
        counts = np.zeros(256, np.int64)
        counts[[color[0] for color in self.colors]] = list(self.colors.values())
        return counts


def write_classes(config: Config) -> tuple[str, Proposal]:
    """Writes classes.yaml into a source in layout `folders` without one; returns its address and what is in it.

    Raises SourceError if the source has a class table, or if the labels hold no classes; StorageError if it cannot be written.
    """
    store, labels = find_labels(config)
    tables = [store.url(key) for key in (TABLE, *find_tables(store)) if store.exists(key)]
    if tables or config.data.layout != "folders":
        known = tables[0] if tables else f"data.layout = {config.data.layout}"
        raise SourceError([f"{known}: lists the classes: nothing was written; data.classes replaces them"])
    found = propose(store, labels)
    store.write(TABLE, "\n".join(["classes:", *(f"- {flow(entry)}" for entry in found.entries), ""]).encode())
    return store.url(TABLE), found


def propose(source: Store, labels: Sequence[str]) -> Proposal:
    """The classes that the labels hold. Raises SourceError with one sentence if their values cannot be classes.

    Names are `background` for 0 or black and numbers for the others: only the user knows what they are.
    """
    every = -(-len(labels) // MOST_READ)
    with ThreadPoolExecutor(own_cores()) as pool:
        read = list(pool.map(partial(_held, source), labels[::every]))
    held = [each for each in read if isinstance(each, _Held)]
    if not held:
        first = next(each for each in read if isinstance(each, str))
        raise SourceError([f"{first}{f' (and {len(read) - 1} more labels)' if len(read) > 1 else ''}"])
    where, of_channels = source.root, [each.colors for each in held if each.ids is None]
    # A colour mask that shows the background alone has three equal channels too.
    if any(len(set(color)) > 1 for colors in of_channels for color in colors):
        if len(of_channels) == len(held):
            return _of_colors(of_channels, where)
        why = f"{len(of_channels)} labels are stored as colours and {len(held) - len(of_channels)} as ids"
        raise SourceError([f"{where}: {why}: store all as ids in one channel, or list the colours of all classes (classes.yaml)"])
    notes = [f"{len(read):,} of {len(labels):,} labels were read: jobs.prepare names the ids that only the others have"]
    found = _of_ids(np.stack([each.as_ids() for each in held]), where)
    return found._replace(notes=[*notes[: every > 1], *found.notes])


def _held(source: Store, key: str) -> _Held | str:
    """What a label holds, or the sentence about one that cannot be read."""
    try:
        data = source.read(key)
        header = codec.check_encoding(data)
        if header.colours in ("RGB", "RGBA") and header.bits == 8 and header.format in codec.LABEL_FORMATS:
            return _Held(None, colors_of(data))
        return _Held(np.bincount(codec.decode_label(data).ravel(), minlength=256), {})
    except Exception as error:  # of any type: jobs.prepare names each faulty file
        return f"{source.url(key)}: {error}"


def _of_ids(counts: npt.NDArray[np.int64], where: str) -> Proposal:
    """Classes from the pixels by id of each label, int64[n, 256]."""
    total = counts.sum(0)
    ids = np.flatnonzero(total).tolist()
    if len(ids) == 1:
        why = f"every pixel of every label is {ids[0]}, so there is nothing to learn"
        raise SourceError([f"{where}: {why}: export the masks again with the classes drawn in"])
    spread = min(np.diff(ids)) >= SPREAD
    if len(ids) > MOST_CLASSES or (not spread and _smoothed(total)):
        raise SourceError([f"{where}: {_no_classes(total)}"])
    notes = []
    ignored = IGNORE in ids and len(ids) > 2 and not spread
    if ignored:
        share = percent(float(total[IGNORE] / total.sum()))
        notes.append(
            f"255 is taken as ignored ({share} of the pixels), as is usual for borders: if it is a class, give it a name"
        )
    if _numbered_objects(counts):
        notes.append(
            "the labels may number objects instead of classes (each holds 1, 2, ... without a gap): if so, give all of them one "
            "name, such as {id: [1, 2, 3], name: object}"
        )
    if spread and len(ids) > 2:
        notes.append(f"the ids {', '.join(map(str, ids))} are spread over 0 to 255, so each is taken as a class")
    entries = [{"id": i, "ignore": True} if ignored and i == IGNORE else {"id": i, "name": _name(i, ids)} for i in ids]
    return Proposal(entries, notes)


def _name(stored: int, ids: Sequence[int]) -> str:
    if stored == 0:
        return "background"
    return "foreground" if len(ids) == 2 and ids[0] == 0 else f"class {stored}"


def _no_classes(total: npt.NDArray[np.int64]) -> str:
    """Why these values are no classes, and what to do."""
    values = np.flatnonzero(total)
    (low, high), between = _extremes(total)
    text = f"the labels hold {len(values)} values from {values[0]} to {values[-1]}"
    if between <= BETWEEN_OF_SMALL:
        return (
            f"{text}, and all but {percent(between)} of the pixels are {low} or {high}: a resize or JPEG has smoothed the edges: "
            f"export the masks again without smoothing, or set each pixel to the nearer of {low} and {high}"
        )
    return f"{text}, which are no classes: {SWAPPED}; numbers of objects must become ids of classes first"


def _extremes(total: npt.NDArray[np.int64]) -> tuple[list[int], float]:
    """The two most frequent values, the lower one first, and the share of the pixels with other values."""
    extremes = np.sort(np.argsort(total)[-2:]).tolist()
    return extremes, float(1 - total[extremes].sum() / total.sum())


def _smoothed(total: npt.NDArray[np.int64]) -> bool:
    """Whether few pixels lie between 0 and 255, with values that do not count up from 1 as ids do."""
    extremes, between = _extremes(total)
    others = np.flatnonzero(total)[1:-1]
    few = BETWEEN if len(others) < MANY_BETWEEN else BETWEEN_OF_SMALL
    return extremes == [0, IGNORE] and 0 < between <= few and not np.array_equal(others, np.arange(1, len(others) + 1))


def _numbered_objects(counts: npt.NDArray[np.int64]) -> bool:
    """Whether the ids number the objects of each image: 1, 2, ... n without a gap, with another n in each."""
    held = counts[:, 1:IGNORE] > 0
    number = held.sum(1)
    last = np.where(number > 0, IGNORE - 1 - held[:, ::-1].argmax(1), 0)
    whole = (number == last).mean()
    return bool(whole >= FEW and number.max() >= MANY_OBJECTS and len(set(number.tolist())) > 2)


def _of_colors(held: Sequence[dict[Color, int]], where: str) -> Proposal:
    colors = sorted({color for each in held for color in each})
    if len(colors) > MOST_CLASSES:
        raise SourceError([
            f"{where}: the labels hold {len(colors):,} colours, which are no classes: {SWAPPED}, or export the masks again as "
            "PNG, without smoothing"
        ])  # fmt: skip
    if len(colors) == 1:
        raise SourceError([f"{where}: every pixel of every label has the colour {list(colors[0])}: there is nothing to learn"])
    names = ["background" if color == (0, 0, 0) else f"color {'-'.join(map(str, color))}" for color in colors]
    entries = [{"id": i, "name": name, "color": list(color)} for i, (color, name) in enumerate(zip(colors, names, strict=True))]
    return Proposal(entries, [])
