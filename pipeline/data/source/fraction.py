"""Takes a split `val` from the training samples of a source that has none."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.data.source.pairing import Pair
from pipeline.storage.store import Object, Store

VERSIONS = re.compile(r"\.rf\.[0-9A-Za-z]+$")
"""What Roboflow adds to the names of the augmented versions of one image."""


def cut_val(
    pairs: Sequence[Pair], fraction: float, source: Store, objects: Mapping[str, Object]
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """(train, val): `val` gets about the `fraction` of the pairs.

    A hash of the name decides, so that no sample changes its split when others are added. Copies of an image, byte for byte, and
    Roboflow's versions of one stay together. Frames of a video do not: nothing in a file says that they are alike. Images of
    equal size in bytes are read.
    """
    groups = _groups(pairs, source, objects)
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for pair, group in zip(pairs, groups, strict=True):
        share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
        parts[share < fraction].append(pair)
    return tuple(parts[0]), tuple(parts[1])


def _groups(pairs: Sequence[Pair], source: Store, objects: Mapping[str, Object]) -> list[str]:
    """The name of each pair's group: the same for images that must stay together."""
    names = [VERSIONS.sub("", pair.sample_id) for pair in pairs]
    sizes = Counter(objects[pair.image].size for pair in pairs)
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first: dict[bytes, str] = {}
    for pair, name in zip(pairs, names, strict=True):
        if sizes[objects[pair.image].size] > 1:
            twin = first.setdefault(hashlib.sha256(source.read(pair.image)).digest(), name)
            low, high = sorted((root(twin), root(name)))
            parent[high] = low
    return [root(name) for name in names]
