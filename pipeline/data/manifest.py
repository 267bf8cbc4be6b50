"""The manifest of a data set: its counts and fingerprint. It is written last and is small for any number of images."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.config import Config
from pipeline.data.classes import Color
from pipeline.errors import ShardError
from pipeline.images.codec import IGNORE
from pipeline.storage.probe import check
from pipeline.storage.store import Store, open_store
from pipeline.tracking.datasets import DataSet

VERSION = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Split:
    """The counts of a split and the folder of its index."""

    num_images: int
    index: str
    """Folder of the index pages, relative to the root of the data set's store."""
    content: str
    """sha256 over sample ids, digests of the files and sizes, in order."""
    bytes: int
    """Bytes of encoded images and labels together."""
    pixels: tuple[int, ...]
    """Pixels of each class."""
    images: tuple[int, ...]
    """Images that contain each class."""
    ignored: int
    """Pixels that belong to no class."""
    smallest: tuple[int, int]
    """Smallest height and smallest width."""
    largest: tuple[int, int]
    """Largest height and largest width."""


@dataclass(frozen=True)
class Manifest:
    """A prepared data set."""

    name: str
    layout: str
    class_names: tuple[str, ...]
    colors: tuple[Color, ...]
    label_map: dict[int, int]
    """Stored label id -> class or 255."""
    splits: dict[str, Split]
    packed: bool
    """True: the bytes are in shards next to the manifest. False: they are in the original objects of `data.source`."""
    source: str
    """sha256 of the source's listing and of the settings it was prepared with."""
    num_duplicates: int = 0
    """Images that occur in more than one split, byte for byte."""
    duplicates: tuple[tuple[str, str], ...] = ()
    """The first duplicates: ("train/ID", "val/ID")."""
    files: tuple[str, ...] = ()
    """The account of the source's files as lines of text: those of samples, and those left out with the reason."""
    left_out: tuple[tuple[str, str], ...] = ()
    """(what, fix) of left-out files that look like samples."""
    alike: tuple[str, ...] = ()
    """Splits whose labels are all the one file that is every label of train."""
    version: int = VERSION
    fingerprint: str = ""
    """sha256 of what the data contain; the same whether they are packed or in place."""

    def num_images(self, split: str) -> int:
        """Images of a split; 0 when the data set has no such split."""
        return self.splits[split].num_images if split in self.splits else 0

    def label_lookup(self) -> npt.NDArray[np.uint8]:
        """Table uint8[256]: stored label id -> class. Ids outside the map, which preparation refuses, give 255."""
        table = np.full(256, IGNORE, np.uint8)
        table[list(self.label_map)] = list(self.label_map.values())
        return table

    def split_fingerprint(self, split: str) -> str:
        """sha256 of what a score on a split depends on: its samples, the classes and the label ids; empty without that split."""
        if split not in self.splits:
            return ""
        content = [self.splits[split].content, self.class_names, sorted(self.label_map.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def sealed(self) -> "Manifest":
        """This manifest with its fingerprint."""
        content = asdict(replace(self, fingerprint=""))
        # The place of the bytes is excluded, so that a run may change between packed and in place (decision 30), and what lies
        # beside the samples or follows from them.
        for key in ("packed", "source", "files", "left_out", "alike"):
            del content[key]
        for split in content["splits"].values():
            del split["index"]
        return replace(self, fingerprint=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())


def write_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Adds the fingerprint, writes the manifest and returns it. Call it last: every shard and index page must be written."""
    sealed = manifest.sealed()
    store.write(MANIFEST, json.dumps(asdict(sealed), indent=1).encode())
    return sealed


def open_data(config: Config) -> Manifest:
    """The manifest of the prepared data set. First writes to the bucket and reads back. Raises StorageError, ShardError."""
    check(open_store(config.storage.path, config.storage))
    manifest, data = read_manifest(open_store(config.data_url, config.storage)), config.data
    for setting, prepared, wanted in (("layout", manifest.layout, data.layout), ("packed", manifest.packed, data.packed)):
        if prepared != wanted:
            raise ShardError(
                f"{config.data_url}: was prepared with data.{setting}={prepared}, but the configuration has {wanted}: change it, "
                "or run python -m jobs.prepare CONFIG again"
            )
    return manifest


def read_manifest(store: Store) -> Manifest:
    """Reads the manifest. Raises ShardError if it is missing, damaged or of another version."""
    where = store.url(MANIFEST)
    again = "run python -m jobs.prepare CONFIG"
    try:
        tree = json.loads(store.read(MANIFEST))
    except FileNotFoundError as error:
        raise ShardError(f"{where}: no such data set: {again} first") from error
    except ValueError as error:
        raise ShardError(f"{where}: not valid JSON ({error}): {again} again") from error
    if not isinstance(tree, dict) or tree.get("version") != VERSION:
        found = tree.get("version") if isinstance(tree, dict) else None
        raise ShardError(f"{where}: version {found!r}, this code reads {VERSION}: {again} again")
    try:
        manifest = _from_json(tree)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{where}: damaged ({error!r}): {again} again") from error
    if manifest.sealed() != manifest:
        raise ShardError(f"{where}: its fingerprint does not match its content: {again} again")
    return manifest


def _from_json(tree: dict[str, Any]) -> Manifest:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    splits = {name: Split(**{key: tuples(value) for key, value in split.items()}) for name, split in tree["splits"].items()}
    label_map = {int(i): c for i, c in tree["label_map"].items()}
    return Manifest(**{key: tuples(value) for key, value in tree.items()} | {"splits": splits, "label_map": label_map})


def data_set(config: Config, manifest: Manifest) -> DataSet:
    """The prepared data set as MLflow shows it."""
    profile = {
        name: {"images": split.num_images, "pixels": dict(zip(manifest.class_names, split.pixels, strict=True))}
        for name, split in manifest.splits.items()
    }
    return DataSet(manifest.name, manifest.fingerprint[:16], config.data_url, profile)
