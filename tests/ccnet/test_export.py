"""An exported file computes what torch computes, at sizes it was not exported at."""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ccnet import CCNet, RCCAHead, build_ccnet
from ccnet.export import ExportError, check_onnx, export_onnx
from ccnet.inference import predict_classes

ROOT = Path(__file__).parents[2]
CLASSES = ("road", "car", "sky", "tree", "Fußweg")
SIZES = [(1, 129, 97), (3, 33, 41), (2, 50, 71), (1, 97, 130), (1, 57, 57)]
# R -> result and opset of its file: torch's own choice, and the newest that torch's converter writes itself.
FILES = {0: ("classes", None), 1: ("logits", 25), 2: ("logits", None), 3: ("logits", None)}


WHOLE = 2
"""R of the only network exported with a ResNet: torch takes long to express the ResNet's sizes as formulas of the image's."""

Exported = Callable[[int], tuple[Path, CCNet]]


class Strided(nn.Module):
    """A replacement of the ResNet: one convolution with the same output stride."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 9, stride=8, padding=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv1(x)
        return y, y


@functools.cache
def template(recurrence: int) -> CCNet:
    torch.manual_seed(recurrence)
    net = build_ccnet(backbone="resnet18", num_classes=len(CLASSES), recurrence=recurrence, embedding_channels=16)
    if recurrence == WHOLE:
        for stage in (net.backbone.layer1, net.backbone.layer2, net.backbone.layer3, net.backbone.layer4):
            del stage[1:]
    else:
        net.backbone, net.head, net.auxiliary, net.embedding = Strided(64), RCCAHead(64, 16, len(CLASSES), recurrence), None, None
    nn.init.constant_(net.head.attention.gamma, 0.7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def network(recurrence: int) -> CCNet:
    """A net in training mode, with attention, batch norms as if trained; R = WHOLE has a ResNet-18 cut to one block per stage."""
    return copy.deepcopy(template(recurrence))


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (b, 3, h, w), dtype=torch.uint8, generator=generator) for b, h, w in SIZES]


def run(path: Path) -> list[Tensor]:
    """The results of onnxruntime for the images."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"image": image.numpy()})[0]) for image in images()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """exported(R): the file of network(R), alone in its folder, and the float64 network after the export; made once per R."""

    @functools.cache
    def export(recurrence: int) -> tuple[Path, CCNet]:
        net, path = network(recurrence).double(), tmp_path_factory.mktemp("onnx") / "net.onnx"
        result, opset = FILES[recurrence]
        assert export_onnx(net, path, result=result, class_names=CLASSES, opset=opset) == (opset or 20)
        return path, net

    return export


@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_logits_equal_torch_at_five_other_sizes(
    exported: Exported, within: Callable[[Tensor, Tensor, float], None], recurrence: int
) -> None:
    net = network(recurrence).eval()
    for image, found in zip(images(), run(exported(recurrence)[0]), strict=True):
        with torch.no_grad():
            expected = net(image).logits
        within(found, expected, 1e-4)


def test_classes_equal_predict_classes(exported: Exported) -> None:
    """Resizing adds up in another order in each, so ties between scores may fall either way."""
    net, equal, seen = network(0), [], set()
    for image, found in zip(images(), run(exported(0)[0]), strict=True):
        expected = predict_classes(net, image, tuple(image.shape[-2:]))
        assert found.dtype == torch.uint8
        assert found.shape == expected.shape
        equal.append((found == expected).flatten())
        seen |= set(expected.unique().tolist())
    assert len(seen) > 1
    assert torch.cat(equal).float().mean() > 0.9999


def test_without_aligned_corners_the_file_and_predict_classes_agree(tmp_path: Path) -> None:
    """predict_classes gives the masks of mmsegmentation: tests/pipeline/evaluation/test_inference.py."""
    net, path = network(0), tmp_path / "net.onnx"
    aligned = [predict_classes(net, image) for image in images()]
    net.align_corners = False
    export_onnx(net, path, result="classes")
    expected = [predict_classes(net, image) for image in images()]
    equal = torch.cat([(a == b).flatten() for a, b in zip(expected, run(path), strict=True)])
    other = torch.cat([(a == b).flatten() for a, b in zip(expected, aligned, strict=True)])
    assert equal.float().mean() > 0.9999 > other.float().mean()
    assert {prop.key: prop.value for prop in onnx.load(path).metadata_props}["align_corners"] == "False"
    assert max(check_onnx(path, net).values()) <= 1e-4


def test_the_file_is_checked_complete_and_free_in_batch_height_and_width(exported: Exported) -> None:
    path, _ = exported(WHOLE)
    onnx.checker.check_model(str(path), full_check=True)
    assert list(path.parent.iterdir()) == [path]
    graph = onnx.load(path).graph
    (image,), (logits,) = graph.input, graph.output
    assert described(image) == ("image", onnx.TensorProto.UINT8, ["batch", 3, "height", "width"])
    assert described(logits) == ("logits", onnx.TensorProto.FLOAT, ["batch", len(CLASSES), "logits_height", "logits_width"])


def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def test_auxiliary_head_and_embedding_and_paths_of_this_machine_stay_out(exported: Exported) -> None:
    model = onnx.load(exported(WHOLE)[0])
    names = {tensor.name for tensor in model.graph.initializer} | {name for node in model.graph.node for name in node.input}
    assert any("head.attention" in name for name in names)
    assert not [name for name in names if "auxiliary" in name or "embedding" in name]
    assert "ccnet/model.py" not in str([(node.doc_string, node.metadata_props) for node in model.graph.node])


def test_the_metadata_describe_the_network(exported: Exported) -> None:
    model = onnx.load(exported(WHOLE)[0])
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "recurrence": "2",
        "num_classes": "5",
        "class_names": '["road", "car", "sky", "tree", "Fu\\u00dfweg"]',
        "pixel_order": "RGB, uint8, 0..255, not normalised",
        "output_stride": "8",
        "align_corners": "True",
    }
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert (model.producer_name, model.producer_version) == ("pytorch", torch.__version__)


def test_the_network_stays_as_it_was(exported: Exported) -> None:
    _, net = exported(WHOLE)
    before = network(WHOLE).double().state_dict()
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("recurrence", [0, WHOLE])
def test_a_file_that_differs_from_the_network_is_an_error(exported: Exported, recurrence: int) -> None:
    path, net = exported(recurrence)[0], network(recurrence)
    assert check_onnx(path, net, [(1, 33, 41)])[1, 33, 41] < 1e-5
    with torch.no_grad():
        net.head.bottleneck[-1].bias[0] += 5
    with pytest.raises(ExportError, match=r"differ by more than 1e-04 \(batch x height x width: 1x33x41: [1-9]"):
        check_onnx(path, net, [(1, 33, 41)])


def test_class_names_of_another_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_names has 2 names: must have one for each of the 5 classes"):
        export_onnx(network(1), tmp_path / "net.onnx", class_names=("road", "car"))


def test_a_missing_package_is_named_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as Python itself marks a module that cannot be imported
    with pytest.raises(ExportError, match="needs the package onnxscript: pip install onnx onnxscript onnxruntime"):
        export_onnx(network(1), tmp_path / "net.onnx")


def test_importing_needs_no_onnx() -> None:
    code = "import sys, ccnet, ccnet.export; print(*{'onnx', 'onnxscript', 'onnxruntime'} & sys.modules.keys())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


def test_a_wrapped_net_and_a_folder_that_does_not_exist_are_refused(tmp_path):
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=1)
    with pytest.raises(ValueError, match="there is no folder"):
        export_onnx(net, tmp_path / "nowhere" / "net.onnx")
    with pytest.raises(ValueError, match="must be a file, and at least one size"):
        check_onnx(tmp_path / "net.onnx", net)
