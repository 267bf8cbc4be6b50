"""A program of torch.export that is saved and loaded, or compiled by AOTInductor, gives the masks of the network."""

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ccnet import CCNet, Output, RCCAHead, build_ccnet
from ccnet.export import export_program
from ccnet.inference import predict_classes
from tests.ccnet.test_export import Strided

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torch.export's own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def network() -> CCNet:
    """With a single convolution in place of the backbone, because torch takes long to trace one with free sizes."""
    torch.manual_seed(1)
    net = build_ccnet(backbone="small", num_classes=5, recurrence=2)
    net.backbone, net.head, net.auxiliary = Strided(64), RCCAHead(64, 16, 5, 2, gamma_init=0.7), None
    return net.eval()


def image(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def stored(program: torch.export.ExportedProgram) -> nn.Module:
    """The program after `torch.export.save` and `load`."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def test_a_whole_network_is_saved_and_loaded_with_its_named_output() -> None:
    torch.manual_seed(0)
    net = build_ccnet(backbone="small", num_classes=5, recurrence=1).eval()
    one = image(1, 33, 41)
    with torch.no_grad():
        expected, found = net(one), stored(torch.export.export(net, (one,)))(one)
    assert type(found) is Output
    assert torch.equal(found.logits.argmax(1), expected.logits.argmax(1))
    torch.testing.assert_close(found.aux_logits, expected.aux_logits)


def test_the_saved_program_gives_the_masks_of_the_network_at_any_size() -> None:
    net = network()
    loaded = stored(export_program(net, result="classes"))
    for size in ((1, 33, 41), (3, 50, 71)):
        with torch.no_grad():
            mask = loaded(image(*size))
        assert (mask == predict_classes(net, image(*size))).float().mean() > 0.999


@pytest.mark.slow
def test_aotinductor_gives_the_masks_of_the_network(tmp_path: Path) -> None:
    net = network()
    program = export_program(net, result="classes", size=(50, 71))
    loaded = torch._inductor.aoti_load_package(
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    )
    for batch in (1, 3):
        mask = loaded(image(batch, 50, 71))
        assert (mask == predict_classes(net, image(batch, 50, 71))).float().mean() > 0.999


def test_a_wrapper_and_another_result_are_refused(unchecked: None) -> None:
    with pytest.raises(ValueError, match="net is a Sequential: must be a CCNet"):
        export_program(nn.Sequential(network()))
    with pytest.raises(ValueError, match="result = 'masks': must be 'logits' or 'classes'"):
        export_program(network(), result="masks")
