"""Export of a network as a program of torch.export, or as one ONNX file that is checked: onnxruntime computes what torch does."""

import contextlib
import copy
import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnet.model import CCNet
from ccnet.shapes import Float, Shaped

if TYPE_CHECKING:
    import onnx

Size: TypeAlias = tuple[int, int, int]
"""Batch, height and width of an input."""

# Size of the traced input. It does not stay in the graph, so any size works except a batch of 1: torch.export treats 0 and 1 as
# constants.
EXAMPLE: Size = (2, 65, 73)
# Sizes to check: 8k + 1 and others, wide and tall, one image and several. None has the example's height or width.
SIZES: tuple[Size, ...] = ((1, 129, 97), (3, 33, 41), (2, 50, 71), (1, 97, 130), (1, 57, 57))


class ExportError(RuntimeError):
    """The export gave no reliable file: a package is missing, or file and network disagree. The message names the cause."""


class _Deployed(nn.Module):
    """The computation that the file holds, on a float32 copy of the network on the CPU in evaluation mode."""

    def __init__(self, net: CCNet, result: str) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).cpu().float()
        self.net.auxiliary = self.net.embedding = None
        self.result = result
        self.eval()

    def scores(self, image: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K h w"]:
        """Class scores at the resolution of the result: stride 8 for logits, the image's own for classes."""
        logits: Tensor = self.net(image).logits
        if self.result == "logits":
            return logits
        # Not resize_logits: it compares sizes, which cannot be traced while the sizes are free.
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=self.net.align_corners)

    def forward(self, image: Shaped[Tensor, "B 3 H W"]) -> Shaped[Tensor, "B ..."]:
        scores = self.scores(image)
        return scores if self.result == "logits" else scores.argmax(1).to(torch.uint8)


Result: TypeAlias = Literal["logits", "classes"]


def export_program(net: CCNet, *, result: Result = "logits", size: tuple[int, int] | None = None) -> torch.export.ExportedProgram:
    """The network as a program for `torch.export.save` and `torch._inductor.aoti_compile_and_package`, on the CPU in float32.

    Input and output are those of `export_onnx`. The dimensions `batch`, `height` and `width` (9 to 4,096 pixels) are free, the
    last two unless `size` (height, width) fixes them, which the compiler of torch 2.13 needs. A program whose output is the whole
    `Output`, traced by torch.export.export(net, (image,)), can be saved too; `import ccnet` before loading it. With other
    free dimensions torch.export.export needs prefer_deferred_runtime_asserts_over_guards=True, as here, or height and
    width as 8 * Dim(...) + 1: otherwise it stops with "Constraints violated", because it cannot prove how pooling rounds the
    sizes. ValueError as of `export_onnx`.
    """
    _check(net, result)
    free = {0: torch.export.Dim("batch", min=1, max=1024)}
    if size is None:
        free |= {2: torch.export.Dim("height", min=9, max=4096), 3: torch.export.Dim("width", min=9, max=4096)}
    batch, *pixels = EXAMPLE
    return torch.export.export(
        _Deployed(net, result),
        (torch.zeros(batch, 3, *(size or pixels), dtype=torch.uint8),),
        dynamic_shapes={"image": free},
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _check(net: CCNet, result: str) -> None:
    if not isinstance(net, CCNet):
        raise ValueError(f"net is a {type(net).__name__}: must be a CCNet (pass the module inside a wrapper)")
    if result not in get_args(Result):
        raise ValueError(f"result = {result!r}: must be 'logits' or 'classes'")


def export_onnx(
    net: CCNet,
    path: str | os.PathLike[str],
    *,
    result: Result = "logits",
    class_names: Sequence[str] | None = None,
    opset: int | None = None,
) -> int:
    """Writes the network as one ONNX file, weights included, and returns its opset (torch.onnx.export with dynamo=True).

    Input `image`: uint8[batch, 3, height, width], RGB, 0..255, not normalised; all dimensions except the 3 are free. Output by
    `result`: `logits`, float32[batch, K, h, w] at stride 8, or `classes`, uint8[batch, height, width], the arg max of the logits
    resized to the image (bilinear, by the net's `align_corners`). For `classes` the runtime holds K scores of every pixel at
    once. The auxiliary head and the embedding are not exported. The model's metadata hold recurrence, num_classes, class_names
    (JSON), pixel_order, output_stride and align_corners, by which logits are to be resized. `opset` None is torch's default, 20
    in torch 2.13, which most runtimes read; 18 to 25 are safe.

    The network may be on any device and in training mode, and stays so. Raises ExportError if onnx, onnxscript or onnxruntime
    is missing or torch does not write the requested opset. ValueError if the number of class names is not that of the classes,
    for another `result`, a wrapped net or a folder that does not exist.
    """
    _check(net, result)
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
    facts |= {"output_stride": 8 if result == "logits" else 1, "align_corners": net.align_corners}
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
    assert program is not None  # it never is with dynamo=True
    return program.model_proto


def check_onnx(
    path: str | os.PathLike[str], net: CCNet, sizes: Sequence[Size] = SIZES, tolerance: float = 1e-4
) -> dict[Size, float]:
    """Runs the file with onnxruntime on the CPU and the network with torch on the same random images, one batch of each size.

    Returns the largest difference for each size, in units of max(1, max |score|). For logits it is the difference of the scores.
    For classes it is how far torch's score of the file's class lies below torch's best score, so that ties may fall either way.
    Raises ExportError if a difference exceeds `tolerance` or is not a number, or if the shapes differ. ValueError without a file
    or without a size.
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
    """The packages that export and check need, by name. Imported on use, because training needs none. Raises ExportError."""
    try:
        return {name: importlib.import_module(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    except ImportError as error:
        needed = "pip install onnx onnxscript onnxruntime"
        raise ExportError(f"ONNX export needs the package {error.name}: {needed} (make install has done it)") from error


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Hides two messages of the exporter: on a deprecated call in its own code, and on torchvision, which nothing here uses."""
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
