"""The classes of each layout: names, colours and stored label ids, from the tables below or from a file in the source."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from pipeline.config.data import ClassEntry
from pipeline.data import export_classes, synthetic
from pipeline.errors import SourceError
from pipeline.formatting import name_fault
from pipeline.images.codec import IGNORE
from pipeline.storage.store import Store

Color = tuple[int, int, int]
LONGEST_NAME, SHOWN_NAME = 300, 60
"""Characters of a class's name, and of those that a fault shows."""


@dataclass(frozen=True)
class Classes:
    """Names and RGB colours by class; stored label id -> class, or 255 (ignored). An id outside the map is a fault."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    label_map: dict[int, int]
    color_ids: dict[Color, int] = field(default_factory=dict)
    """RGB colour that the source lists -> stored id, for labels in colours; a colour of several classes is left out."""


def palette(index: int) -> Color:
    """RGB colour of a stored id 0..255: PASCAL VOC's colour map.

    Every third bit of `index` belongs to one channel; the lowest bits of `index` are the highest of the channel
    (host.robots.ox.ac.uk/pascal/VOC/voc2012: VOCdevkit, VOCcode/VOClabelcolormap.m).
    """
    red, green, blue = (sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))
    return red, green, blue


# github.com/mcordts/cityscapesScripts: helpers/labels.py. A licence plate has id -1 there and 255 in a label file.
CITYSCAPES_CLASS_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_LABEL_MAP = dict.fromkeys([*range(34), IGNORE], IGNORE) | {stored: i for i, stored in enumerate(CITYSCAPES_CLASS_IDS)}
CITYSCAPES = Classes(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
        "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    colors=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
        (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    label_map=CITYSCAPES_LABEL_MAP,
)  # fmt: skip

# github.com/alexgkendall/SegNet-Tutorial: Scripts/test_segmentation_camvid.py; id 11 is `Unlabelled`.
CAMVID = Classes(
    names=(
        "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
    ),
    colors=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    label_map={**{i: i for i in range(11)}, 11: IGNORE},
)  # fmt: skip

# PASCAL VOC 2012 development kit, section 3 of its documentation; 255 is the border drawn around every object.
VOC = Classes(
    names=(
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
        "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    colors=tuple(palette(i) for i in range(21)),
    label_map={**{i: i for i in range(21)}, IGNORE: IGNORE},
)  # fmt: skip
GENERATED = Classes(synthetic.NAMES, synthetic.COLORS, {i: i for i in range(len(synthetic.NAMES))})

ADE20K_BASES = ("", "ADEChallengeData2016/")
ADE20K_INFO = "objectInfo150.txt"
OTHER_TABLES = ("classes.yml", "data.yaml", "dataset.yaml", "classes.txt", "classes.json", "labels.txt", "obj.names",
                "dataset.json", "meta.json")  # fmt: skip
"""Files that often name classes, in forms that are not read."""


def classes(layout: str, source: Store | None, given: Sequence[ClassEntry] | None = None) -> Classes:
    """The given classes, or those of a layout. Raises SourceError with every fault of what lists them.

    Files in the source: `classes.json` for `camvid` (optional), `objectInfo150.txt` for `ade20k`, `classes.yaml` for `folders`.
    """
    if given:
        return _with_255(_from_entries([each.model_dump(mode="json", exclude_none=True) for each in given], "data.classes"))
    fixed = {"generated": GENERATED, "cityscapes": CITYSCAPES, "camvid": CAMVID, "voc": VOC}
    if layout == "camvid" and source and source.exists("classes.json"):
        return _camvid(source)
    if layout in fixed:
        return fixed[layout]
    if source is None:
        raise SourceError([f"data.source is missing: layout `{layout}` reads its classes from there; add data.source=FOLDER"])
    return _ade20k(source) if layout == "ade20k" else _folders(source)


def read_text(source: Store, key: str) -> str:
    """Content of a text file of the source, without a byte order mark. Raises SourceError if it is not UTF-8."""
    try:
        return source.read(key).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            [f"{source.url(key)}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"]
        ) from error


def _camvid(source: Store) -> Classes:
    where = source.url("classes.json")
    try:
        tree = json.loads(read_text(source, "classes.json"))
    except json.JSONDecodeError as error:
        raise SourceError([f"{where}: not valid JSON: {error}"]) from error
    if not isinstance(tree, dict) or not isinstance(tree.get("classes"), list):
        raise SourceError([f"{where}: expected {{classes: [{{id, name, color: [r, g, b], ignore}}, ...]}}"])
    return _from_entries(tree["classes"], where)


def _ade20k(source: Store) -> Classes:
    """The 150 classes of ADE20K: stored id 0 (other, unlabelled) is ignored, id i is class i - 1.

    The name of a class is the first of its line's synonyms.
    """
    key = next((base + ADE20K_INFO for base in ADE20K_BASES if source.exists(base + ADE20K_INFO)), None)
    if key is None:
        where = source.url(ADE20K_INFO)
        raise SourceError([f"{where}: no such file: it names the 150 classes; copy it there from ADEChallengeData2016.zip"])
    header, *lines = read_text(source, key).splitlines() or [""]
    # In ADEChallengeData2016.zip the file has tabs and `a, b c`; in sampleData of github.com/CSAILVision/sceneparsing it has
    # commas and `a;b;c`.
    separator = "\t" if "\t" in header else ","
    rows = [line.split(separator, header.count(separator)) for line in lines if line.strip()]
    names = [re.split("[,;]", row[-1])[0].strip() for row in rows]
    if [row[0].strip() for row in rows] != [str(i) for i in range(1, 151)] or not all(names):
        fault = f"{source.url(key)}: expected a heading and the lines 1 to 150, `Idx Ratio Train Val Name` separated by tabs"
        raise SourceError([f"{fault}: take the file of ADEChallengeData2016.zip"])
    # In the second form `;` also replaces blanks, so `screen door` and `screen` get the same name. Scores are listed by name, so
    # equal names get a number.
    unique = (name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names, 1))
    colors = tuple(palette(i) for i in range(1, 151))
    return Classes(tuple(unique), colors, {0: IGNORE, **{i: i - 1 for i in range(1, 151)}})


def _folders(source: Store) -> Classes:
    where = source.url("classes.yaml")
    form = "a list of names, {id: name}, or `classes:` and a list of {id, name, color, ignore}"
    if not source.exists("classes.yaml"):
        if tables := export_classes.find_tables(source):
            return _from_export(source, tables)
        other = next((f"; {source.url(key)} is not read: copy its names" for key in OTHER_TABLES if source.exists(key)), "")
        fault = f"{where}: no such file: layout `folders` reads its classes from there; write {form}{other}"
        more = f"the tables {', '.join(export_classes.PARSERS)} of annotation tools are read too"
        raise SourceError([f"{fault} ({more}); `jobs.prepare CONFIG --write-classes` writes what the labels hold"])
    try:
        text = read_text(source, "classes.yaml")
        tree, twice = yaml.safe_load(text), _twice(yaml.compose(text, yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise SourceError([f"{where}: not valid YAML: {' '.join(str(error).split())}"]) from error
    if twice:
        raise SourceError([f"{where}: has {', '.join(twice)} twice, of which YAML would keep the last: delete one"])
    entries = _entries(tree)
    if entries is None:
        found = f"the keys {', '.join(map(str, tree))}" if isinstance(tree, dict) else "nothing" if tree is None else repr(tree)
        raise SourceError([f"{where}: expected {form}; found {found}"])
    return _with_255(_from_entries(entries, where))


def _with_255(known: Classes) -> Classes:
    """The classes, with 255 ignored unless it is listed."""
    return replace(known, label_map={IGNORE: IGNORE, **known.label_map})


def _twice(root: yaml.Node | None) -> list[str]:
    """The keys that a mapping, at the top or one level below, has more than once."""
    inner = [value for _, value in root.value] if isinstance(root, yaml.MappingNode) else []
    maps = [node for node in (root, *inner) if isinstance(node, yaml.MappingNode)]
    return [key for node in maps for key, uses in Counter(str(name.value) for name, _ in node.value).items() if uses > 1]


def _entries(tree: object) -> list[object] | None:
    """The entries of a list or of {id: name}, which may be all that lies below `classes` or `names`; None for another form."""
    if isinstance(tree, dict) and len(tree) == 1 and not tree.keys().isdisjoint(("classes", "names")):
        (tree,) = tree.values()
    if isinstance(tree, dict) and tree and all(isinstance(key, int) for key in tree):
        return [{"id": stored, "name": name} for stored, name in tree.items()]
    if not isinstance(tree, list) or any(isinstance(entry, dict) for entry in tree):
        return tree if isinstance(tree, list) else None
    return [{"id": i, "name": name} for i, name in enumerate(tree)]


def _from_export(source: Store, keys: list[str]) -> Classes:
    """The classes of an annotation tool's own tables. Raises SourceError unless those of all splits are the same."""
    tables = []
    for key in keys:
        try:
            tables.append(export_classes.parse(key, read_text(source, key)))
        except ValueError as error:
            raise SourceError([f"{source.url(key)}: {error}"]) from error
    first = source.url(keys[0])
    if other := next((key for key, table in zip(keys, tables, strict=True) if table != tables[0]), None):
        why = "so equal ids mean other classes: export the splits with the same classes"
        raise SourceError([f"{source.url(other)}: its ids or names are not those of {first}, {why}"])
    return _with_255(_from_entries([*tables[0]], first))


def _from_entries(entries: Sequence[object], where: str) -> Classes:
    """Classes in the order of their first ids; ignored ids leave no gap, and ids with the same name are one class.

    Raises SourceError with the faults of all entries.
    """
    if len(entries) > IGNORE + 1:
        raise SourceError([_too_many(len(entries), where)])
    faults: list[str] = []
    ids: dict[int, tuple[int, dict[str, Any]]] = {}
    for number, entry in enumerate(entries, 1):
        place = f"{where}: entry {number}"
        own = [f"{place}: {fault}" for fault in _entry_faults(entry)]
        faults += own
        if own or not isinstance(entry, dict):
            continue
        for stored in _ids(entry):
            if stored in ids:
                faults.append(f"{place}: id = {stored}: entry {ids[stored][0]} has the same id (give each class its own id)")
            ids.setdefault(stored, (number, entry))
    table = {stored: entry for stored, (_, entry) in sorted(ids.items())}
    names = list(dict.fromkeys(entry["name"] for entry in table.values() if not entry.get("ignore", False)))
    if not faults and len(names) > IGNORE:
        faults.append(_too_many(len(names), where))
    if not faults and len(names) < 2:
        fix = "name also what the other pixels are, such as {id: 0, name: background}"
        state = "1 class that is" if names else "0 classes that are"
        faults.append(f"{where}: {state} not ignored: at least 2, because with fewer there is nothing to learn: {fix}")
    if faults:
        raise SourceError(faults)
    label_map = {i: IGNORE if entry.get("ignore", False) else names.index(entry["name"]) for i, entry in table.items()}
    colors = tuple(_color(k, table, label_map) for k in range(len(names)))
    return Classes(tuple(names), colors, label_map, _color_ids(table, label_map))


def _too_many(number: int, where: str) -> str:
    why = "labels have 8 bits, and one of their values means ignored"
    return f"{where}: {number} classes: at most 255, because {why}: merge some (several ids may have the same name)"


def _entry_faults(entry: object) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{entry!r}: expected {{id: 0..255, name: NAME}}, optionally with color: [r, g, b] or ignore: true"
        return
    for key in entry:
        if key not in ("id", "name", "color", "ignore"):
            yield f"{key} = {entry[key]!r}: no such key; legal: id, name, color, ignore"
    if not _ids(entry) or not all(map(_is_byte, _ids(entry))):
        yield f"id = {entry.get('id')!r}: must be a whole number from 0 to 255, the value of the class in the labels"
    ignored, name = entry.get("ignore", False), entry.get("name")
    if not isinstance(ignored, bool):
        yield f"ignore = {ignored!r}: must be true or false"
    if (not isinstance(name, str) or not name.strip()) and not (ignored is True and name is None):
        yield f"name = {name!r}: must be text (YAML reads an unquoted no, on or 1 as another type: put it in quotes)"
    elif isinstance(name, str) and (odd := name_fault(name, LONGEST_NAME)):
        yield f"name = {name[:SHOWN_NAME]!a}: {odd}"
    color = entry.get("color", [0, 0, 0])
    if not isinstance(color, list) or len(color) != 3 or not all(map(_is_byte, color)):
        yield f"color = {color!r}: must be [red, green, blue], each 0 to 255 (or leave it out)"


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _ids(entry: dict[str, Any]) -> list[Any]:
    """The stored ids of an entry: `id` is one number or a list of them."""
    stored = entry.get("id")
    return stored if isinstance(stored, list) else [stored]


def _color(number: int, table: dict[int, dict[str, Any]], label_map: dict[int, int]) -> Color:
    """The first colour that the entries of a class list, else that of its first id."""
    mine = [stored for stored in table if label_map[stored] == number]
    listed = (table[stored]["color"] for stored in mine if "color" in table[stored])
    red, green, blue = next(listed, palette(mine[0]))
    return red, green, blue


def _color_ids(table: dict[int, dict[str, Any]], label_map: dict[int, int]) -> dict[Color, int]:
    found: dict[Color, list[int]] = {}
    for stored, entry in table.items():
        if "color" in entry:
            red, green, blue = entry["color"]
            found.setdefault((red, green, blue), []).append(stored)
    return {color: ids[0] for color, ids in found.items() if len({label_map[stored] for stored in ids}) == 1}
