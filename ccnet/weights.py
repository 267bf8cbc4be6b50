"""Published checkpoints (official, mmsegmentation, torchvision backbones) -> state dicts of our networks.

    state = from_mmseg(read_state("ccnet_r50-d8_512x1024_80k_cityscapes.pth"))
    net = build_ccnet(**architecture(state), recurrence=2)
    load(net, state)

"Official" are all branches of github.com/speedinghzl/CCNet; their names and shapes are the same. "mmseg" is mmsegmentation 1.2.2
with the CrissCrossAttention of mmcv; its names have not changed since the checkpoints of 2020.
"""

import errno
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ccnet.model import PIXEL_MEAN, build_ccnet
from ccnet.resnet import BASIC, BLOCKS_PER_STAGE

State = dict[str, Tensor]
Names = tuple[tuple[str, str], ...]  # (their prefix, our prefix); the first match is used

OFFICIAL_NAMES: Names = (
    ("dsn.", "auxiliary."),
    ("head.cca.query_conv.", "head.attention.query."),
    ("head.cca.key_conv.", "head.attention.key."),
    ("head.cca.value_conv.", "head.attention.value."),
    ("head.cca.gamma", "head.attention.gamma"),
    ("head.", "head."),
    ("", "backbone."),
)
MMSEG_NAMES: Names = (
    ("decode_head.convs.0.conv.", "head.conva.0."),
    ("decode_head.convs.0.bn.", "head.conva.1."),
    ("decode_head.cca.query_conv.", "head.attention.query."),
    ("decode_head.cca.key_conv.", "head.attention.key."),
    ("decode_head.cca.value_conv.", "head.attention.value."),
    ("decode_head.cca.gamma.scale", "head.attention.gamma"),
    ("decode_head.convs.1.conv.", "head.convb.0."),
    ("decode_head.convs.1.bn.", "head.convb.1."),
    ("decode_head.conv_cat.conv.", "head.bottleneck.0."),
    ("decode_head.conv_cat.bn.", "head.bottleneck.1."),
    ("decode_head.conv_seg.", "head.bottleneck.3."),
    ("auxiliary_head.convs.0.conv.", "auxiliary.0."),
    ("auxiliary_head.convs.0.bn.", "auxiliary.1."),
    ("auxiliary_head.conv_seg.", "auxiliary.3."),
)
# The stem of ResNetV1c. The names of the 7x7 stem are conv1 and bn1, as in our networks.
MMSEG_STEM_NAMES: Names = (
    ("backbone.stem.0.", "backbone.conv1."),
    ("backbone.stem.1.", "backbone.bn1."),
    ("backbone.stem.3.", "backbone.conv2."),
    ("backbone.stem.4.", "backbone.bn2."),
    ("backbone.stem.6.", "backbone.conv3."),
    ("backbone.stem.7.", "backbone.bn3."),
)
TORCHVISION_NAMES: Names = (("", "backbone."),)
# The ImageNet backbones that mmsegmentation starts from (open-mmlab://resnet50_v1c) are saved without a prefix.
MMSEG_BACKBONE_NAMES: Names = (
    *((theirs.removeprefix("backbone."), ours) for theirs, ours in MMSEG_STEM_NAMES),
    ("", "backbone."),
)

# RGB, for pixels of 0 to 255: data_preprocessor of mmsegmentation's configs; torchvision's 0.485 and so on, times 255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
IN_PLACE_NORM_EPS = 1e-5
MISFITS_SHOWN = 100


def read_state(path: Path | str) -> State:
    """The tensors of a `.safetensors` or torch file, by name, on the CPU; nothing in the file is executed.

    The content tells which of the two it is. If it has a `state_dict` or a `model`, that is read. The prefix `module.` of a
    wrapped net is removed from the names. ValueError names a file that is damaged, is no checkpoint or holds more than tensors
    and plain values. OSError as from open().
    """
    content = _content(Path(path))
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, must hold a dict of tensors")
    if others := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path}: must hold only tensors, at the top or under 'state_dict' or 'model'; {others[:3]} are not")
    return {str(name).removeprefix("module."): value.detach() for name, value in content.items()}


def _content(path: Path) -> Any:
    """What the file holds. Raises as `read_state`."""
    with path.open("rb") as file:
        head, num_bytes = file.read(9), file.seek(0, os.SEEK_END)
    try:
        if head[8:] == b"{":  # safetensors: the length of a JSON header in 8 bytes, then the header
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one is of a seek in a file cut short
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
        if isinstance(error, pickle.UnpicklingError) and head.startswith((b"PK", b"\x80")):
            raise ValueError(
                f"{path}: holds more than tensors and plain values ({reason}); nothing in it was run. "
                "If you trust its origin, write its tensors alone to a new file and read that: "
                'torch.save(torch.load(old, weights_only=False)["state_dict"], new)'
            ) from error
        raise ValueError(
            f"{path}: is damaged or cut short, or is no checkpoint ({reason}): download or copy it again, and compare its size, "
            f"{num_bytes} bytes, with the original's"
        ) from error


def from_official(state: State, *, in_place_norm: bool = True) -> State:
    """A checkpoint of the official code -> the state dict of build_ccnet(variant="official") of the same backbone and classes.

    The published checkpoints were trained with InPlace-ABN, hence `in_place_norm` (see `plain_norm`); False is for a checkpoint
    trained with plain batch norm. The first convolution is converted from BGR to RGB. The pixel buffers get the values of the
    published training: its mean, no division. Half precision becomes float32. Without any `dsn.*` there is no auxiliary head.
    Without any `head.*` either, the state is that of a backbone alone: the ImageNet one that the official training starts from,
    for which True gives that start and False what it computed on ImageNet. ValueError lists what does not fit.
    """
    _refuse_other_families(state, "from_official")
    ours = _converted(_without_classifier(state), OFFICIAL_NAMES, variant="official", stem="deep")
    ours["backbone.conv1.weight"] = ours["backbone.conv1.weight"].flip(1)
    return _with_pixels(plain_norm(ours) if in_place_norm else ours, PIXEL_MEAN, (1.0, 1.0, 1.0))


def from_mmseg(state: State) -> State:
    """A CCNet of mmsegmentation -> the state dict of build_ccnet(variant="mmseg") of the same backbone and classes.

    The stem may be deep (ResNetV1c) or 7x7; the state must have both heads. Or it is the ImageNet backbone that they start from
    (`resnet50_v1c`), for which the result has the backbone alone, without its classifier `fc`. ValueError lists what does not
    fit. To reproduce mmsegmentation's scores, build the net with its config's align_corners (`ccnet.mmseg`).
    """
    _refuse_other_families(state, "from_mmseg")
    if any(name.startswith("stem.") for name in state):
        backbone = _converted(_without_classifier(state), MMSEG_BACKBONE_NAMES, variant="mmseg", stem="slim")
        return _with_pixels(backbone, IMAGENET_MEAN, IMAGENET_STD)
    deep = any(name.startswith("backbone.stem.") for name in state)
    names, stem = (MMSEG_NAMES + MMSEG_STEM_NAMES, "slim") if deep else (MMSEG_NAMES, "plain")
    # Their gamma has no dimension, ours has one.
    state = {name: value[None] if name.endswith("gamma.scale") and value.ndim == 0 else value for name, value in state.items()}
    return _with_pixels(_converted(state, names, variant="mmseg", stem=stem, auxiliary=True), IMAGENET_MEAN, IMAGENET_STD)


def from_torchvision(state: State) -> State:
    """A torchvision ResNet-18, -34, -50 or -101 -> the backbone.* and pixel buffers of build_ccnet(stem="plain").

    The classifier `fc` is dropped. `load` leaves the heads of the net as they are. ValueError lists what does not fit.
    """
    _refuse_other_families(state, "from_torchvision")
    return _with_pixels(_converted(_without_classifier(state), TORCHVISION_NAMES, stem="plain"), IMAGENET_MEAN, IMAGENET_STD)


def plain_norm(state: State) -> State:
    """InPlace-ABN's scales as those of plain batch norm: |weight| + 1e-5 for each weight of one dimension, the rest unchanged.

    The new scales are float64; `load` casts them to the net's dtype.

    Sources: mapillary/inplace_abn issues 92 and 180; libs/src/bn.cu of the official branch pytorch-1.5.
    """
    return {
        name: value.double().abs() + IN_PLACE_NORM_EPS if name.endswith("weight") and value.ndim == 1 else value
        for name, value in state.items()
    }


def architecture(state: State) -> dict[str, Any]:
    """Keyword arguments of build_ccnet for a converted state, except `recurrence`, which no checkpoint stores.

    They are backbone and stem; with the heads also num_classes, variant and auxiliary; with an embedding also its width. The
    variant is recognised by a slim stem (unless the backbone is small) or by the auxiliary head; without either the state
    counts as official. A state that fits no architecture gets the nearest one; `load` and the conversions then list what is
    missing, left over or of another shape.
    """
    num_blocks = len({name.split(".")[2] for name in state if name.startswith("backbone.layer3.")})
    basic = not any(name.startswith("backbone.layer") and ".conv3." in name for name in state)
    kind = BASIC if basic else ("resnet50", "resnet101")
    nearest = min(kind, key=lambda name: abs(BLOCKS_PER_STAGE[name][2] - num_blocks))
    third = state.get("backbone.bn3.weight")
    found: dict[str, Any] = {"backbone": nearest, "stem": "plain"}
    if third is not None:
        found["stem"] = "slim" if third.shape[:1] == (64,) else "deep"
    if any(name.startswith("head.") for name in state):
        auxiliary = any(name.startswith("auxiliary.") for name in state)
        scores = (f"{head}.3.{kind}" for head in ("head.bottleneck", "auxiliary") for kind in ("weight", "bias"))
        sizes = [state[name].shape[0] for name in scores if name in state and state[name].ndim]
        found["num_classes"] = sizes[0] if sizes else 2
        found["auxiliary"] = auxiliary
        of_mmseg = (found["stem"] == "slim" and nearest != "small") or (auxiliary and "auxiliary.0.bias" not in state)
        found["variant"] = "mmseg" if of_mmseg else "official"
    if (embedding := state.get("embedding.weight")) is not None:
        found["embedding_channels"] = embedding.shape[0]
    return found


def load(net: nn.Module, state: State, *, keep: Sequence[str] = ()) -> None:
    """Copy `state` into `net`, cast to the net's dtypes; `state` must have every entry of `net`, with its shape.

    `keep` names prefixes that stay as they are in `net` and are ignored in `state`: with ("head.bottleneck.3.", "auxiliary.3.") a
    net for other classes starts from a checkpoint. A state of nothing but a backbone leaves everything else as it is.
    ValueError lists what is missing, left over and of another shape, or a prefix that no name has; then nothing is copied.
    """
    ours = net.state_dict()
    if isinstance(keep, str) or (idle := [prefix for prefix in keep if not any(name.startswith(prefix) for name in ours)]):
        wrong = keep if isinstance(keep, str) else idle
        raise ValueError(f"keep = {keep!r}: must be a tuple of prefixes of names in the net (wrong: {wrong!r})")
    needed = _shapes(ours, but=keep)
    if all(name.startswith(("backbone.", "pixel_")) for name in state):
        needed = {name: shape for name, shape in needed.items() if name.startswith(("backbone.", "pixel_"))}
    found = _shapes(state, but=keep)
    _refuse_misfits(
        "the state does not fit the net (build it with build_ccnet(**architecture(state), recurrence=...))", found, needed
    )
    net.load_state_dict(ours | {name: state[name] for name in found})


def _converted(state: State, names: Names, **known: Any) -> State:
    """`state` under our names, checked to be complete; `known` are arguments of build_ccnet that are certain."""
    ours = {_renamed(name, names): value for name, value in state.items()}
    ours = {name: value.float() if value.dtype in (torch.float16, torch.bfloat16) else value for name, value in ours.items()}
    arguments = architecture(ours) | known
    with torch.device("meta"):
        net = build_ccnet(**{"num_classes": 2} | arguments, recurrence=1)
    needed = _shapes(net.state_dict(), but=("pixel_",) if "num_classes" in arguments else ("pixel_", "head.", "auxiliary."))
    for name in needed:
        if name.endswith("num_batches_tracked"):  # neither the official code nor torch before 0.4.1 has them
            ours.setdefault(name, torch.tensor(0))
    theirs = tuple((our_prefix, their_prefix) for their_prefix, our_prefix in names)
    _refuse_misfits(
        f"the checkpoint does not fit {', '.join(f'{key} = {value!r}' for key, value in arguments.items())}",
        {_renamed(name, theirs): shape for name, shape in _shapes(ours).items()},
        {_renamed(name, theirs): shape for name, shape in needed.items()},
    )
    return ours


def _renamed(name: str, names: Names) -> str:
    return next((new + name.removeprefix(old) for old, new in names if name.startswith(old)), name)


def _shapes(state: Mapping[str, Tensor], but: Iterable[str] = ()) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items() if not name.startswith(tuple(but))}


def _without_classifier(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def _with_pixels(state: State, mean: tuple[float, float, float], std: tuple[float, float, float]) -> State:
    pixels = {"pixel_mean": mean, "pixel_std": std}
    return state | {name: torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1) for name, value in pixels.items()}


def _refuse_misfits(what: str, found: Mapping[str, list[int]], needed: Mapping[str, list[int]]) -> None:
    """One ValueError that lists everything that is missing, left over or of another shape."""
    misfits = {
        "missing": [f"{name} {shape}" for name, shape in needed.items() if name not in found],
        "left over": [f"{name} {shape}" for name, shape in found.items() if name not in needed],
        "of another shape": [
            f"{name}: {found[name]}, needed {shape}" for name, shape in needed.items() if found.get(name, shape) != shape
        ],
    }
    lines = []
    for kind, names in misfits.items():
        more = [f"and {len(names) - MISFITS_SHOWN} more"] if len(names) > MISFITS_SHOWN else []
        if names:
            lines.append(f"  {len(names)} {kind}: " + "; ".join(names[:MISFITS_SHOWN] + more))
    if lines:
        raise ValueError("\n".join([f"{what}:", *lines]))


def _refuse_other_families(state: State, function: str) -> None:
    """ValueError for entries that are not tensors, or if the names are those of a family that another function converts."""
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{function}: {', '.join(others[:3])} are not tensors: use ccnet.weights.read_state on the file")
    first = state.get("conv1.weight")
    if any(name.startswith(("decode_head.", "backbone.stem.", "stem.")) for name in state):
        fitting = "from_mmseg"
    elif any(name.startswith(("head.cca.", "dsn.")) for name in state):
        fitting = "from_official"
    elif any(name.startswith(("head.attention.", "pixel_")) for name in state):
        fitting = "load (it is converted already)"
    elif first is not None:
        fitting = "from_torchvision" if first.shape[-1:] == (7,) else "from_official"
    elif any(name.startswith("layer1.") for name in state) and function != "from_mmseg":
        return  # a backbone without its first convolution: the list of missing entries will name it
    else:
        fitting = "read_state on the file first, if it is one of the supported families at all"
    if fitting != function:
        raise ValueError(
            f"{function}: cannot convert this checkpoint (it has {', '.join(list(state)[:3])}): use ccnet.weights.{fitting}"
        )
