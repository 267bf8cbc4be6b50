"""What differs in how two checkpoints were made: settings, data, and the first step at which their trainings part."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.base import Tracking
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.config.run_key import changed_settings, shaping
from pipeline.data.index import Index
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.errors import DataError, StorageError, TrackingError
from pipeline.storage.store import Store, open_store
from pipeline.tracking.client import reached, tracking_uri
from pipeline.tracking.provenance import other_code
from pipeline.tracking.runs import history

Progress = Mapping[str, Any]
"""What a checkpoint says of its training: `Checkpoint.progress`."""
MOST = 10
"""Ids that a line names."""
UNKNOWN = "unknown"


def settings(one: Progress, other: Progress) -> list[str]:
    """A line for each setting that shapes the model, and for each version of the program, that differs."""
    if "config" in one and "config" in other:
        found = changed_settings(shaping(one["config"]), shaping(other["config"]))
    else:
        found = ["unknown: a model delivered by an earlier version lacks them; give its run or its checkpoint"]
    return found + other_code(one.get("environment", {}), other.get("environment", {}))


def data(config: Config, one: Progress, other: Progress) -> list[str]:
    """How the data sets differ that the two were trained on: ids that were added, removed, or have another label or image."""
    names = [each["protocol"].get("data") for each in (one, other)]
    prints = [each["protocol"].get("data_fingerprint") for each in (one, other)]
    if not all(prints):
        return [UNKNOWN]
    if prints[0] == prints[1]:
        return []
    found = [f"{names[0]} {prints[0][:16]} and {names[1]} {prints[1][:16]}"]
    try:
        return found + _of_images(config, names, prints)
    except (DataError, StorageError) as error:
        return [*found, f"the images cannot be compared: {error}"]


def _of_images(config: Config, names: Sequence[str], prints: Sequence[str]) -> list[str]:
    """A line for each kind of difference between two data sets that are still prepared as they were."""
    stores = [open_store(override(config, {"data.name": name}).data_url, config.storage) for name in names]
    manifests = [read_manifest(store) for store in stores]
    for name, manifest, fingerprint in zip(names, manifests, prints, strict=True):
        if manifest.fingerprint != fingerprint:
            return [f"the images cannot be compared: {name} was prepared again since"]
    first, second = manifests
    found = [f"other {what}" for what, one, other in (
        ("class names", first.class_names, second.class_names), ("label ids", first.label_map, second.label_map),
    ) if one != other]  # fmt: skip
    for split in dict.fromkeys([*first.splits, *second.splits]):
        before, after = (_content(store, manifest, split) for store, manifest in zip(stores, manifests, strict=True))
        found += _changes(split, before, after)
    return found


def _content(store: Store, manifest: Manifest, split: str) -> dict[str, tuple[bytes, bytes]]:
    """Sample id -> sha256 of image and label."""
    number = manifest.num_images(split)
    entries = Index(store, manifest.splits[split].index, number).entries(range(number)) if number else []
    return {entry.sample_id: (entry.image_sha256, entry.label_sha256) for entry in entries}


def _changes(split: str, one: Mapping[str, tuple[bytes, bytes]], other: Mapping[str, tuple[bytes, bytes]]) -> list[str]:
    both = [name for name in one if name in other]
    kinds = {
        "added": [name for name in other if name not in one],
        "removed": [name for name in one if name not in other],
        "relabelled": [name for name in both if one[name][1] != other[name][1] and one[name][0] == other[name][0]],
        "with another image": [name for name in both if one[name][0] != other[name][0]],
    }
    return [f"{split}: {len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST]) + (", ..." if len(names) > MOST else "")


def steps(tracking: Tracking, one: Progress, other: Progress) -> list[str]:
    """From which step on the losses of the two runs differ, by their points in MLflow."""
    runs = [str(each.get("run_id", "")) for each in (one, other)]
    if not all(runs):
        return [UNKNOWN]
    if runs[0] == runs[1]:
        return [f"the same run, steps {one['step']} and {other['step']}"]
    try:
        uri = tracking_uri(tracking)
        with reached(uri, "the losses could not be read"):
            before, after = (dict(history(uri, run, "train/loss")) for run in runs)
    except TrackingError as error:
        return [f"{UNKNOWN}: {error}"]
    both = sorted(before.keys() & after.keys())
    if not both:
        return [f"{UNKNOWN}: MLflow has no step that both have recorded"]
    differs = next((step for step in both if before[step] != after[step]), None)
    if differs is None:
        return [] if before.keys() == after.keys() else [f"equal as far as both go, to step {both[-1]}"]
    return [f"the loss differs from step {differs} on: {before[differs]:.9g} and {after[differs]:.9g}"]
