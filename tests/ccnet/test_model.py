"""The head and the whole network against the published ones."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ccnet import RCCAHead, build_ccnet

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL_NAMES = {  # ours: theirs, where they differ; the backbone's are theirs behind "backbone."
    "backbone.": "",
    "auxiliary.": "dsn.",
    "attention.gamma": "cca.gamma",
    "attention.query": "cca.query_conv",
    "attention.key": "cca.key_conv",
    "attention.value": "cca.value_conv",
}


def official_name(name: str) -> str:
    for ours, theirs in OFFICIAL_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def recipe(seed: int, name: str, shape: torch.Size) -> torch.Tensor:
    """The weights of full_network.npz, a pure function of the seed and the official name."""
    key = np.array([seed, zlib.crc32(name.encode())], dtype=np.uint64)
    u = np.random.Generator(np.random.Philox(key=key)).random(tuple(shape))
    if name.endswith("running_var"):
        value = 0.5 + u
    elif name.endswith("gamma"):
        value = np.full(tuple(shape), 0.5)
    elif name.endswith("weight") and len(shape) == 4:
        value = (u - 0.5) * np.sqrt(12 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 0.6 + 0.4 * u
    else:
        value = 0.2 * (u - 0.5)
    return torch.from_numpy(value.astype(np.float32))


def network_of_the_recipe(backbone: str, seed: int) -> nn.Module:
    net = build_ccnet(backbone=backbone, num_classes=19, recurrence=2)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if not name.endswith("num_batches_tracked") and not name.startswith("pixel"):
                value.copy_(recipe(seed, official_name(name), value.shape))
        net.backbone.conv1.weight.copy_(net.backbone.conv1.weight.flip(1))  # theirs takes BGR
        net.pixel_std.fill_(1)  # theirs does not divide
    return net.double().eval()


@pytest.mark.parametrize(("backbone", "recurrences"), [("resnet101", (0, 1, 2)), ("resnet50", (2,))])
def test_equals_the_published_network(backbone, recurrences, golden, within):
    z = golden("full_network")
    net = network_of_the_recipe(backbone, int(z["seed"]))
    net.pixel_mean.copy_(torch.tensor([122.67891434, 116.66876762, 104.00698793], dtype=torch.float64).view(1, 3, 1, 1))
    image = z["image"].permute(2, 0, 1)[None]
    for recurrence in recurrences:
        net.head.recurrence = recurrence
        with torch.no_grad():
            output = net(image)
        within(output.logits[0], z[f"{backbone}_R{recurrence}_logits"], 1e-9)
        within(output.aux_logits[0], z[f"{backbone}_R{recurrence}_aux"], 1e-9)


@pytest.mark.parametrize("backbone", ["resnet101", "resnet50"])
def test_state_dict_is_the_published_one_but_for_names_and_our_extra_buffers(backbone):
    layout = json.loads((GOLDEN / f"state_dict_{backbone}.json").read_text())
    with torch.device("meta"):
        net = build_ccnet(backbone=backbone, num_classes=19, recurrence=2)
    ours = {official_name(name): list(value.shape) for name, value in net.state_dict().items()}
    extra = {name for name in ours if name.endswith("num_batches_tracked") or name.startswith("pixel")}
    assert {name: shape for name, shape in ours.items() if name not in extra} == {k["name"]: k["shape"] for k in layout["keys"]}
    assert sum(parameter.numel() for parameter in net.parameters()) == layout["n_parameters"]


@pytest.mark.parametrize(("backbone", "num_parameters"), [("resnet101", 71_287_911), ("resnet50", 52_295_783)])
def test_number_of_parameters(backbone, num_parameters):
    with torch.device("meta"):
        net = build_ccnet(backbone=backbone, num_classes=19, recurrence=2)
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("dtype", "tolerance", "parameter_tolerance"), [(torch.float64, 1e-9, 1e-9), (torch.float32, 2e-5, 2e-4)]
)
@pytest.mark.parametrize("recurrence", [0, 1, 2, 3])
@pytest.mark.parametrize("case", ["rcca_fresh_bn", "rcca_trained_bn"])
def test_head_equals_the_published_one(case, recurrence, dtype, tolerance, parameter_tolerance, golden, within):
    z = golden(case)
    num_classes, channels = z["p:bottleneck.3.weight"].shape[:2]
    head = RCCAHead(z["x"].shape[1], channels, num_classes, recurrence)
    for name, value in head.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(z[f"p:{official_name(name)}"])
    head.eval().to(dtype)
    x = z["x"].to(dtype).requires_grad_()

    y = head(x)
    (y * z["r"].to(dtype)).sum().backward()

    within(y, z[f"y_R{recurrence}"], tolerance)
    within(head.context(x), z[f"feat_R{recurrence}"], tolerance)
    within(x.grad, z[f"gx_R{recurrence}"], tolerance)
    if recurrence > 0:
        for short, name in {"wq": "query.weight", "bk": "key.bias", "wv": "value.weight", "gamma": "gamma"}.items():
            within(head.attention.get_parameter(name).grad, z[f"g_{short}_R{recurrence}"], parameter_tolerance)


def test_without_recurrence_the_attention_is_frozen_and_everything_else_trains():
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=0)
    output = net(torch.zeros(2, 3, 33, 33, dtype=torch.uint8))
    (output.logits.sum() + output.aux_logits.sum()).backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == {
        f"head.attention.{name}" for name, _ in net.head.attention.named_parameters()
    }


def test_forward_gives_both_heads_at_stride_eight_in_training_and_evaluation():
    net = build_ccnet(backbone="resnet18", num_classes=7, recurrence=2)
    image = torch.randint(0, 256, (2, 3, 49, 65), dtype=torch.uint8)
    for mode in (True, False):
        output = net.train(mode)(image)
        assert output.logits.shape == output.aux_logits.shape == (2, 7, 7, 9)


def test_without_the_auxiliary_head_there_are_no_auxiliary_scores():
    net = build_ccnet(backbone="resnet18", num_classes=7, recurrence=1, auxiliary=False).eval()
    assert net(torch.zeros(1, 3, 33, 33, dtype=torch.uint8)).aux_logits is None
    assert not any(name.startswith("auxiliary") for name in net.state_dict())


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 33, 33), torch.zeros(1, 4, 33, 33, dtype=torch.uint8)])
def test_anything_but_uint8_rgb_is_an_error(image):
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=1)
    with pytest.raises(ValueError, match=r"must be torch.uint8\[B, 3, H, W\], RGB"):
        net(image)


@pytest.mark.parametrize("recurrence", [-1, True])
def test_recurrence_must_be_a_number_of_passes(recurrence):
    with pytest.raises(ValueError, match="recurrence = "):
        build_ccnet(backbone="resnet18", num_classes=2, recurrence=recurrence)


def test_recurrence_has_no_default():
    with pytest.raises(TypeError, match="recurrence"):
        build_ccnet(backbone="resnet18", num_classes=2)


@pytest.mark.parametrize("num_classes", [0, 256])
def test_classes_must_fit_a_uint8_label(num_classes):
    with pytest.raises(ValueError, match="num_classes = "):
        build_ccnet(backbone="resnet18", num_classes=num_classes, recurrence=2)


def test_activations_of_random_weights_keep_their_scale():
    torch.manual_seed(0)
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=2).eval()
    layer3, layer4 = net.backbone(torch.randn(1, 3, 65, 65))
    assert 0.1 < layer3.std().item() < 10
    assert 0.1 < layer4.std().item() < 100
