"""A network as one ONNX file, and the proof that onnxruntime computes with it what torch computes."""

import contextlib
import copy
import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ccnet.model import CCNet

if TYPE_CHECKING:
    import onnx

Size: TypeAlias = tuple[int, int, int]
"""Batch, height and width of an input."""

# Any size does, for none of it stays in the graph, but not a batch of 1: torch.export takes 0 and 1 for constants.
EXAMPLE: Size = (2, 65, 73)
# 8k + 1 and not, wide and tall, alone and in a batch; none has the example's height or width.
SIZES: tuple[Size, ...] = ((1, 129, 97), (3, 33, 41), (2, 50, 71), (1, 97, 130), (1, 57, 57))


class ExportError(RuntimeError):
    """No file that can be relied upon: a package is missing, or the file and the network disagree; the message names which."""


class _Deployed(nn.Module):
    """What the file computes, by a float32 copy of the network on the CPU in evaluation mode; the network stays as it is."""

    def __init__(self, net: CCNet, result: str) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).cpu().float()
        self.net.auxiliary = self.net.embedding = None
        self.result = result
        self.eval()

    def scores(self, image: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K h w"]:
        """Class scores at the result's resolution: stride 8 for logits, the image's own for classes."""
        logits: Tensor = self.net(image).logits
        if self.result == "logits":
            return logits
        # Not by resize_logits: its comparison of sizes cannot be traced while they are free.
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=True)

    def forward(self, image: Shaped[Tensor, "B 3 H W"]) -> Shaped[Tensor, "B ..."]:
        scores = self.scores(image)
        return scores if self.result == "logits" else scores.argmax(1).to(torch.uint8)


def export_onnx(
    net: CCNet,
    path: str | os.PathLike[str],
    *,
    result: Literal["logits", "classes"] = "logits",
    class_names: Sequence[str] | None = None,
    opset: int | None = None,
) -> int:
    """Writes the network as one ONNX file, weights included, and returns its opset (torch.onnx.export with dynamo=True).

    Input `image`: uint8[batch, 3, height, width], RGB, 0..255, not normalised, each dimension but the 3 free. Output by `result`:
    `logits`, float32[batch, K, h, w] at stride 8, or `classes`, uint8[batch, height, width]: the arg max of the logits resized to
    the image (bilinear, corners aligned), for which the runtime holds K scores of every pixel at once. The auxiliary head and
    the embedding are left out. The model's metadata tell recurrence, num_classes, class_names (JSON), pixel_order and
    output_stride. `opset` None is torch's own choice, 20 in torch 2.13, which the most runtimes read; 18 to 25 are safe.

    The network may be on any device and in training mode, and stays so. Raises ExportError when onnx, onnxscript or onnxruntime
    is missing or the opset cannot be had, ValueError for class names of another number than the classes, another `result`, a
    wrapped net or a folder that does not exist.
    """
    if not isinstance(net, CCNet):
        raise ValueError(f"net is a {type(net).__name__}: must be a CCNet (pass the module inside a wrapper)")
    if result not in ("logits", "classes"):
        raise ValueError(f"result = {result!r}: must be 'logits' or 'classes'")
    if not (folder := Path(path).parent).is_dir():
        raise ValueError(f"{path}: there is no folder {folder}")
    onnx = _packages()["onnx"]
    deployed = _Deployed(net, result)
    batch, height, width = EXAMPLE
    example = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    with torch.no_grad():
        num_classes = deployed.scores(example).shape[1]
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"class_names has {len(class_names)} names: must have one for each of the {num_classes} classes")
    model = _traced(deployed, example, opset)
    written: int = next(entry.version for entry in model.opset_import if entry.domain == "")
    if opset not in (None, written):
        raise ExportError(f"opset = {opset}: torch {torch.__version__} writes {written} instead (try 20)")
    _tidy(model, result)
    facts = {"recurrence": net.head.recurrence, "num_classes": num_classes, "pixel_order": "RGB, uint8, 0..255, not normalised"}
    facts |= {"output_stride": 8 if result == "logits" else 1}
    facts |= {} if class_names is None else {"class_names": json.dumps(list(class_names))}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return written


def _traced(deployed: _Deployed, example: Tensor, opset: int | None) -> "onnx.ModelProto":
    with _without_noise():
        program = torch.onnx.export(
            deployed,
            (example,),
            input_names=["image"],
            output_names=[deployed.result],
            dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # with dynamo it never is
    return program.model_proto


def check_onnx(
    path: str | os.PathLike[str], net: CCNet, sizes: Sequence[Size] = SIZES, tolerance: float = 1e-4
) -> dict[Size, float]:
    """Runs the file by onnxruntime on the CPU and the network by torch on the same random images, one batch of each size.

    Returns the largest difference of each size, in units of max(1, max |score|): for logits that of the scores; for classes how
    far the score of the class that the file chose lies below the best one, both by torch, so that ties may fall either way.
    Raises ExportError when one exceeds `tolerance`, is not a number, or when the shapes differ.
    """
    if not sizes or not Path(path).is_file():
        raise ValueError(f"{path}, sizes = {sizes}: must be a file, and at least one size to run it at")
    runtime = _packages()["onnxruntime"]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    result = session.get_outputs()[0].name
    deployed = _Deployed(net, result)
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch, height, width in sizes:
        image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            scores = deployed.scores(image)
        (found,) = session.run(None, {"image": image.numpy()})
        differences[batch, height, width] = _difference(torch.from_numpy(found), scores, result)
    if not all(difference <= tolerance for difference in differences.values()):
        listed = ", ".join(f"{'x'.join(map(str, size))}: {difference:.1e}" for size, difference in differences.items())
        raise ExportError(f"{path}: onnxruntime and torch differ by more than {tolerance:.0e} (batch x height x width: {listed})")
    return differences


def _difference(found: Tensor, scores: Float[Tensor, "B K h w"], result: str) -> float:
    expected_shape = scores.shape if result == "logits" else scores[:, 0].shape
    if found.shape != expected_shape:
        raise ExportError(f"onnxruntime returns {result} {list(found.shape)}, torch {list(expected_shape)}")
    if result == "logits":
        largest = (found - scores).abs().max()
    else:
        chosen = scores.gather(1, found[:, None].long())  # [B, 1, H, W]
        largest = (scores.amax(1, keepdim=True) - chosen).max()
    return float(largest / scores.abs().max().clamp(min=1))


def _packages() -> Mapping[str, Any]:
    """onnx and what torch and `check_onnx` need besides, imported on use: training does without. Raises ExportError."""
    try:
        return {name: importlib.import_module(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    except ImportError as error:
        raise ExportError(f'ONNX export needs the package {error.name}: pip install "ccnet-pipeline[export]"') from error


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Leaves out what the exporter says of itself: a deprecated call of its own, and torchvision, which nothing here uses."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registration.setLevel(level)


def _tidy(model: "onnx.ModelProto", result: str) -> None:
    """Removes stack traces with this machine's paths, and gives the free output dimensions names instead of formulas."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    del graph.value_info[:]
    if result == "logits":
        for dimension, name in zip(
            graph.output[0].type.tensor_type.shape.dim[2:], ("logits_height", "logits_width"), strict=True
        ):
            dimension.dim_param = name
