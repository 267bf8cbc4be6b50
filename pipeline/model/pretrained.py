"""Reads the weights that a network starts from: a published checkpoint, which may be for other classes."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ccnet import CCNet
from ccnet.mmseg import trained_align_corners
from ccnet.model import default_stem
from ccnet.weights import State, architecture, from_mmseg, from_official, from_torchvision, load, read_state
from pipeline.checkpoints.files import PROGRESS
from pipeline.config.config import Config
from pipeline.errors import ConfigError
from pipeline.storage import disk
from pipeline.storage.fetch import fetched
from pipeline.storage.store import Store, open_store

logger = logging.getLogger(__name__)

PUBLISHED = {
    "imagenet": (
        "https://download.pytorch.org/models/",
        {
            "resnet18": "resnet18-f37072fd.pth",
            "resnet34": "resnet34-b627a593.pth",
            "resnet50": "resnet50-0676ba61.pth",
            "resnet101": "resnet101-63fe2227.pth",
        },
    ),
    "cityscapes": (
        "https://download.openmmlab.com/mmsegmentation/v0.5/ccnet/",
        {
            "resnet50": "ccnet_r50-d8_769x769_80k_cityscapes/ccnet_r50-d8_769x769_80k_cityscapes_20200617_010421-73eed8ca.pth",
            "resnet101": "ccnet_r101-d8_769x769_80k_cityscapes/ccnet_r101-d8_769x769_80k_cityscapes_20200618_011502-ad3cd481.pth",
        },
    ),
}
"""Name -> place, and the file of each backbone, whose name ends with the first digits of its sha256. IMAGENET1K_V1 of torchvision
(torchvision/models/resnet.py), and the best CCNets of mmsegmentation on Cityscapes (configs/ccnet/metafile.yaml, 79.29 and 79.45
mIoU there); docs/model.md has their licences."""
CLASSIFIERS = ("head.bottleneck.3.", "auxiliary.3.")
"""Prefixes of the layers whose size is the number of classes."""
EMBEDDING = "embedding."
"""Prefix of the layer of the category-consistent loss, which no published checkpoint has."""


def _as_it_is(state: State) -> State:
    return state


CONVERTERS: dict[str, Callable[[State], State]] = {
    "official": from_official,
    "mmseg": from_mmseg,
    "torchvision": from_torchvision,
    "ccnet": _as_it_is,
}


class Pretrained(NamedTuple):
    """A published checkpoint under our names."""

    state: State
    sha256: str
    """Hash of the file."""


def read_pretrained(config: Config) -> Pretrained | None:
    """The checkpoint at `model.weights`; None when the setting is empty.

    Raises ConfigError that names the mismatch, StorageError when the store refuses.
    """
    model = config.model
    if model.weights is None:
        return None
    store, name, data = _read(config, model.weights)
    room = disk.writing(Path(tempfile.gettempdir()), len(data))
    with room, tempfile.TemporaryDirectory(prefix="ccnet-weights-") as scratch:
        file = Path(scratch, name)
        file.write_bytes(data)
        try:
            state = CONVERTERS[model.weights_format](read_state(file))
        except ValueError as error:
            words = str(error).replace(f"{file}: ", "")
            raise ConfigError([f"model.weights = {model.weights} (weights_format={model.weights_format}): {words}"]) from error
        if any(name.startswith("head.") for name in state):
            _refuse_another_resizing(config, _trained_align_corners(config, store, file))
    _refuse_another_network(config, architecture(state))
    return Pretrained(state, hashlib.sha256(data).hexdigest())


def _read(config: Config, weights: str) -> tuple[Store | None, str, bytes]:
    """(store, name, bytes) of the file; no store for one that is named."""
    if weights in PUBLISHED:
        url, sha256 = _published(weights, config.model.backbone)
        return None, url.rpartition("/")[2], fetched(url, sha256)
    folder, slash, name = weights.rpartition("/")
    try:
        store = open_store(folder + slash, config.storage)
        return store, name, store.read(name)
    except FileNotFoundError as error:
        raise ConfigError([f"model.weights = {weights}: no such file"]) from error


def _published(weights: str, backbone: str) -> tuple[str, str]:
    """Address of a named file and the first digits of its sha256, which end its name (`torch.hub` checks the same)."""
    place, files = PUBLISHED[weights]
    return place + files[backbone], files[backbone].rpartition("-")[2].removesuffix(".pth")


def load_pretrained(net: CCNet, initial: Pretrained, num_classes: int) -> None:
    """Copies the checkpoint into the network.

    The classifiers stay random if they are for another number of classes, and the embedding if the checkpoint has none of the
    same shape. Raises ValueError that lists every other mismatch.
    """
    if all(name.startswith(("backbone.", "pixel_")) for name in initial.state):
        logger.info("model.weights holds a backbone alone: the heads start from random weights")
    ours, theirs = net.state_dict(), architecture(initial.state).get("num_classes", num_classes)
    fresh: tuple[str, ...] = CLASSIFIERS if theirs != num_classes else ()
    if _shape(ours, EMBEDDING) != _shape(initial.state, EMBEDDING):
        fresh += (EMBEDDING,)
    state = {name: tensor for name, tensor in initial.state.items() if not name.startswith(fresh)}
    load(net, state, keep=[prefix for prefix in fresh if any(name.startswith(prefix) for name in ours)])
    if theirs != num_classes:
        logger.info("model.weights has %d classes, the data %d: the classifiers start from random weights", theirs, num_classes)


def _shape(state: State, prefix: str) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for name, tensor in state.items() if name.startswith(prefix)]


def _trained_align_corners(config: Config, store: Store | None, file: Path) -> bool | None:
    """`align_corners` of the training that wrote the checkpoint; None if it is not known."""
    if config.model.weights_format == "mmseg":
        return trained_align_corners(file)
    if config.model.weights_format == "ccnet":
        if not (store and store.exists(PROGRESS)):  # a file alone, not the folder of a run's checkpoint: taken as configured
            return config.model.align_corners is not False
        return bool(json.loads(store.read(PROGRESS)).get("model", {}).get("align_corners", True))  # older records: aligned
    return True


def _refuse_another_resizing(config: Config, trained: bool | None) -> None:
    said = config.model.align_corners
    if trained is None and said is None:
        fix = "false, as mmsegmentation's configs have it, or true, as those for crops of 769 x 769"
        raise ConfigError([f"model.align_corners is not set, and model.weights does not tell how it was trained: set {fix}"])
    if trained is not None and trained != (said is not False):
        fix = f"set model.align_corners={str(trained).lower()}"
        raise ConfigError([f"model.align_corners = {said is not False}: model.weights was trained with {trained} ({fix})"])


def _refuse_another_network(config: Config, found: dict[str, Any]) -> None:
    wanted = {"backbone": config.model.backbone, "variant": config.model.variant, "stem": config.model.stem}
    if wanted["stem"] is None:
        wanted["stem"] = default_stem(config.model.backbone, config.model.variant)
    differing = [
        f"model.{key} = {value!r}: model.weights is of {found[key]!r} (set model.{key}={found[key]})"
        for key, value in wanted.items()
        if key in found and found[key] != value
    ]
    if differing:
        raise ConfigError(differing)
