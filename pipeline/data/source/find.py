"""Finds the samples of the configured source, without reading their files."""

import os
import posixpath
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.config.config import Config
from pipeline.data.classes import Classes, classes
from pipeline.data.layouts import Samples, find_samples
from pipeline.data.source.inventory import Inventory
from pipeline.data.source.pairing import Pair, TextList
from pipeline.data.source.record import identity
from pipeline.errors import SourceError
from pipeline.storage.probe import check_readable
from pipeline.storage.store import Object, Store, open_store

Item = Pair | int
"""A sample to prepare: a pair of files, or the position of a generated one."""


class Source(NamedTuple):
    """The samples to prepare."""

    store: Store | None
    """Store of the original files; None for `generated`."""
    known: Classes
    splits: dict[str, Sequence[Item]]
    listing: dict[str, Object]
    """The files of the pairs, by key."""
    inventory: Inventory | None
    """The account of all files; None for `generated`."""


def find_source(config: Config) -> Source:
    """The samples of the configured source. Raises StorageError, or SourceError with every fault of the layout."""
    data = config.data
    if data.layout == "generated":
        made: dict[str, Sequence[Item]] = {"train": range(data.generated.num_train), "val": range(data.generated.num_val)}
        return Source(None, classes("generated", None), made, {}, None)
    store, found = _found(config)
    return Source(store, classes(data.layout, store, data.classes), {**found.splits}, found.objects, found.inventory)


def find_labels(config: Config) -> tuple[Store, list[str]]:
    """The store of the configured source and the keys of its labels. Raises what `find_source` raises."""
    if not config.data.source:
        raise SourceError([f"data.layout = {config.data.layout}: has no files"])
    store, found = _found(config)
    return store, [pair.label for pairs in found.splits.values() for pair in pairs]


def _found(config: Config) -> tuple[Store, Samples]:
    data = config.data
    store = open_store(str(data.source), config.storage)
    check_readable(store)
    lists = {str(split): _list(config, store, split, given) for split, given in data.lists.items()}
    return store, find_samples(data.layout, store, lists, label_suffix=data.label_suffix, val_fraction=data.val_fraction)


def _list(config: Config, source: Store, split: str, given: str) -> TextList:
    """The list of a split: a path below the source, or a full path or address of any other place."""
    setting = f"data.lists.{split} = {given}"
    path = given if "://" in given else os.path.expanduser(given)
    if path.startswith("../") and not source.is_s3:
        path = os.path.normpath(f"{source.root}/{path}")
    inside = path.removeprefix(f"{source.root}/")
    if "://" in inside or os.path.isabs(inside):
        folder, name = posixpath.split(inside)
        return TextList(open_store(folder, config.storage), name, setting)
    return TextList(source, posixpath.normpath(inside), setting)


def source_identity(config: Config, source: Source) -> str:
    """sha256 of all that decides what preparation writes: files and settings."""
    return identity(config, source.store.root if source.store else None, source.known, source.splits, source.listing)
