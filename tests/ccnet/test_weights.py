"""Published checkpoints: the converted network computes what the published code computes; states that do not fit are refused.

No checkpoint is shipped: the weights are those of the recipe in tests/golden/README.md, under the published names and shapes.
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ccnet import RCCAHead, build_ccnet
from ccnet.weights import architecture, from_mmseg, from_official, from_torchvision, load, plain_norm

GOLDEN = Path(__file__).parents[1] / "golden"


def layout(family: str, backbone: str) -> dict[str, list[int]]:
    """Names and shapes of a published checkpoint."""
    if family == "official":
        keys = json.loads((GOLDEN / f"state_dict_{backbone}.json").read_text())["keys"]
        return {key["name"]: key["shape"] for key in keys}
    return json.loads((GOLDEN / f"{family}_state_dicts.json").read_text())[backbone]


def recipe(seed: int, name: str, shape: list[int]) -> Tensor:
    """One tensor of the golden networks, a pure function of the seed and the published name."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    key = np.array([seed, zlib.crc32(name.encode())], dtype=np.uint64)
    u = np.random.Generator(np.random.Philox(key=key)).random(tuple(shape))
    if name.endswith("running_var"):
        value = 0.5 + u
    elif "gamma" in name:
        value = np.full(tuple(shape), 0.5)
    elif name.endswith("weight") and len(shape) == 4:
        value = (u - 0.5) * np.sqrt(12 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 0.6 + 0.4 * u
    else:
        value = 0.2 * (u - 0.5)
    return torch.from_numpy(value.astype(np.float32)).double()


@functools.lru_cache(maxsize=1)  # half a gigabyte each; consecutive tests use the same one
def checkpoint(family: str, backbone: str, seed: int) -> dict[str, Tensor]:
    return {name: recipe(seed, name, shape) for name, shape in layout(family, backbone).items()}


def blank(family: str, backbone: str) -> dict[str, Tensor]:
    """A checkpoint of ones that takes no memory."""
    return {name: torch.ones(()).expand(shape) for name, shape in layout(family, backbone).items()}


def network(state: dict[str, Tensor], **arguments: object) -> nn.Module:
    """The network of a converted state, in the state's dtype. Nothing is initialised: every value comes from the state."""
    with torch.device("meta"):
        net = build_ccnet(**architecture(state), recurrence=2, **arguments)
    net.to_empty(device="cpu").to(state["backbone.conv1.weight"].dtype)
    load(net, state)
    return net.eval()


def batch(image: Tensor) -> Tensor:
    return image.permute(2, 0, 1)[None]  # [1, 3, H, W]


@pytest.mark.parametrize(("backbone", "recurrences"), [("resnet101", (0, 1, 2)), ("resnet50", (2,))])
def test_equals_the_published_network(backbone, recurrences, golden, within):
    z = golden("full_network")
    net = network(from_official(checkpoint("official", backbone, int(z["seed"])), in_place_norm=False))
    for recurrence in recurrences:
        net.head.recurrence = recurrence
        with torch.no_grad():
            output = net(batch(z["image"]))
        within(output.logits[0], z[f"{backbone}_R{recurrence}_logits"], 1e-9)
        within(output.aux_logits[0], z[f"{backbone}_R{recurrence}_aux"], 1e-9)


def test_equals_the_published_network_in_single_precision(golden, within):
    z = golden("full_network")
    state = {name: value.float() for name, value in checkpoint("official", "resnet50", int(z["seed"])).items()}
    with torch.no_grad():
        output = network(from_official(state, in_place_norm=False))(batch(z["image"]))
    within(output.logits[0], z["resnet50_R2_logits"], 1e-4)


@pytest.mark.parametrize(
    ("backbone", "size", "recurrences"),
    [("resnet50", "33x41", (1, 2)), ("resnet50", "32x40", (1, 2)), ("resnet101", "33x41", (2,))],
)
def test_equals_the_network_of_mmsegmentation(backbone, size, recurrences, golden, within):
    z = golden("mmseg_network")
    net = network(from_mmseg(checkpoint("mmseg", backbone, int(z["seed"]))))
    for recurrence in recurrences:
        net.head.recurrence = recurrence
        with torch.no_grad():
            output = net(batch(z[f"image_{size}"]))
        within(output.logits[0], z[f"{backbone}_{size}_R{recurrence}_logits"], 1e-9)
        within(output.aux_logits[0], z[f"{backbone}_{size}_aux"], 1e-9)


@pytest.mark.parametrize("size", ["25x33", "24x40"])
def test_equals_the_dilated_backbone_of_torchvision(size, golden, within):
    # Its pooling and the dilation of its first blocks are those of mmsegmentation's CCNet.
    z = golden("torchvision_backbones")
    state = from_torchvision(checkpoint("torchvision", "resnet50", int(z["seed"])))
    net = build_ccnet(**architecture(state), variant="mmseg", num_classes=2, recurrence=1).double().eval()
    load(net, state)
    with torch.no_grad():
        layer3, layer4 = net.backbone(net.normalise(batch(z[f"image_{size}"])))
    within(layer3[0].mean(0), z[f"resnet50_{size}_layer3_positions"], 1e-9)
    within(layer4[0].mean(0), z[f"resnet50_{size}_layer4_positions"], 1e-9)
    within(layer4[0].mean((1, 2)), z[f"resnet50_{size}_layer4_channels"], 1e-9)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_equals_the_backbone_of_torchvision_until_dilation_begins(backbone, golden, within):
    z = golden("torchvision_backbones")
    state = from_torchvision(checkpoint("torchvision", backbone, int(z["seed"])))
    net = build_ccnet(**architecture(state), num_classes=2, recurrence=1, auxiliary=False).double().eval()
    load(net, state)
    seen: list[Tensor] = []
    net.backbone.layer2.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        net(batch(z["image_25x33"]))  # 8k + 1, where pooling with and without ceil_mode agree
    expected = z[f"{backbone}_25x33_layer2"]
    within(seen[0] if backbone == "resnet18" else seen[0].mean((1, 2)), expected, 1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_plain_norm_computes_what_the_in_place_norm_does_whatever_the_sign_of_its_scales(sign, golden, within):
    z = golden("rcca_trained_bn")
    names = {"cca.query_conv": "attention.query", "cca.key_conv": "attention.key", "cca.value_conv": "attention.value"}
    names |= {"cca.gamma": "attention.gamma"}
    published = {name.removeprefix("p:"): value.double() for name, value in z.items() if name.startswith("p:")}
    published |= {name: sign * published[name] for name in ("conva.1.weight", "convb.1.weight", "bottleneck.1.weight")}
    num_classes, channels = published["bottleneck.3.weight"].shape[:2]
    head = RCCAHead(z["x"].shape[1], channels, num_classes, recurrence=2).double().eval()
    for name, value in plain_norm(published).items():
        ours = next((name.replace(theirs, ours) for theirs, ours in names.items() if name.startswith(theirs)), name)
        head.state_dict()[ours].copy_(value)
    within(head(z["x"].double()), z["y_R2_absgamma"], 1e-9)


def test_official_checkpoints_come_from_the_in_place_norm_by_default():
    published = blank("official", "resnet50") | {"bn1.weight": torch.full((64,), -0.5)}
    assert from_official(published)["backbone.bn1.weight"][0].item() == pytest.approx(0.50001)
    assert from_official(published, in_place_norm=False)["backbone.bn1.weight"][0].item() == -0.5
    assert from_official(published)["head.bottleneck.3.bias"][0].item() == 1.0


def test_official_pixels_are_turned_from_bgr_and_not_divided():
    published = blank("official", "resnet50")
    published["conv1.weight"] = torch.arange(3.0).view(1, 3, 1, 1).expand(64, 3, 3, 3)
    state = from_official(published)
    assert state["backbone.conv1.weight"][0, :, 0, 0].tolist() == [2, 1, 0]
    assert state["pixel_mean"].flatten().tolist() == pytest.approx([122.67891434, 116.66876762, 104.00698793])
    assert state["pixel_std"].flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("family", "convert", "backbone", "expected"),
    [
        ("official", from_official, "resnet101", {"variant": "official", "stem": "deep", "num_classes": 19, "auxiliary": True}),
        ("mmseg", from_mmseg, "resnet101", {"variant": "mmseg", "stem": "slim", "num_classes": 19, "auxiliary": True}),
        ("torchvision", from_torchvision, "resnet18", {"stem": "plain"}),
        ("torchvision", from_torchvision, "resnet50", {"stem": "plain"}),
    ],
)
def test_the_architecture_is_read_from_the_state(family, convert, backbone, expected):
    assert architecture(convert(blank(family, backbone))) == {"backbone": backbone} | expected


def test_official_checkpoint_without_the_auxiliary_head():
    published = {name: value for name, value in blank("official", "resnet50").items() if not name.startswith("dsn.")}
    assert architecture(from_official(published))["auxiliary"] is False


def test_official_backbone_alone():
    published = {name: value for name, value in blank("official", "resnet50").items() if not name.startswith(("dsn.", "head."))}
    assert architecture(from_official(published | {"fc.bias": torch.ones(1000)})) == {"backbone": "resnet50", "stem": "deep"}


def test_mmsegmentation_with_the_7x7_stem():
    published = {name: value for name, value in blank("mmseg", "resnet50").items() if not name.startswith("backbone.stem.")}
    published |= {f"backbone.{n}": v for n, v in blank("torchvision", "resnet50").items() if n.startswith(("conv1.", "bn1."))}
    assert architecture(from_mmseg(published)) == {
        "backbone": "resnet50",
        "stem": "plain",
        "variant": "mmseg",
        "num_classes": 19,
        "auxiliary": True,
    }


def test_half_precision_becomes_single():
    published = {name: value.half() for name, value in blank("official", "resnet50").items()}
    state = from_official(published)
    assert state["head.conva.0.weight"].dtype == torch.float32
    assert torch.float16 not in {value.dtype for value in state.values()}


def test_what_does_not_fit_is_named_all_at_once():
    published = blank("official", "resnet50") | {"head.cca.gamma": torch.ones(2), "layer3.0.conv9.weight": torch.ones(3)}
    del published["dsn.1.running_mean"]
    with pytest.raises(ValueError, match="the checkpoint does not fit backbone = 'resnet50'") as refused:
        from_official(published)
    assert str(refused.value).splitlines()[1:] == [
        "  1 missing: dsn.1.running_mean [512]",
        "  1 left over: layer3.0.conv9.weight [3]",
        "  1 of another shape: head.cca.gamma: [2], needed [1]",
    ]


def test_mmsegmentation_misfits_carry_its_own_names():
    published = blank("mmseg", "resnet50")
    del published["backbone.stem.3.weight"]
    with pytest.raises(ValueError, match=r"1 missing: backbone.stem.3.weight \[32, 32, 3, 3\]$"):
        from_mmseg(published)


@pytest.mark.parametrize(
    ("convert", "family", "fitting"),
    [
        (from_official, "mmseg", "from_mmseg"),
        (from_official, "torchvision", "from_torchvision"),
        (from_mmseg, "official", "from_official"),
        (from_torchvision, "mmseg", "from_mmseg"),
    ],
)
def test_another_family_is_refused_with_the_function_that_fits(convert, family, fitting):
    with pytest.raises(ValueError, match=f"{convert.__name__}: cannot convert this checkpoint .* use ccnet.weights.{fitting}$"):
        convert(blank(family, "resnet50"))


def test_a_converted_state_is_not_converted_again():
    with pytest.raises(ValueError, match=r"use ccnet.weights.load \(it is converted already\)"):
        from_official(from_official(blank("official", "resnet50")))


def test_a_backbone_that_cannot_be_built_is_compared_with_the_nearest():
    published = blank("torchvision", "resnet50")
    published |= {f"layer3.{block}.conv3.weight": torch.ones(1) for block in range(36)}
    with pytest.raises(ValueError, match=r"does not fit backbone = 'resnet101'[^$]*13 left over: layer3.23.conv3.weight \[1\]"):
        from_torchvision(published)


def small_net(**arguments: object) -> nn.Module:
    return build_ccnet(**{"backbone": "resnet18", "num_classes": 3, "recurrence": 1} | arguments)


def test_loading_names_at_most_a_hundred_of_a_kind_and_copies_nothing():
    net = small_net()
    with torch.device("meta"):
        other = small_net(backbone="resnet101")
    before = net.backbone.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"4\d\d left over: backbone.layer1.0.conv3.weight .*; and 3\d\d more"):
        load(net, other.state_dict())
    assert torch.equal(net.backbone.conv1.weight, before)


def test_a_backbone_leaves_the_heads_as_they_are():
    net = small_net(stem="plain", embedding_channels=4)
    heads = {name: value.clone() for name, value in net.state_dict().items() if not name.startswith(("backbone.", "pixel_"))}
    load(net, from_torchvision(blank("torchvision", "resnet18")))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in heads.items())
    assert torch.equal(net.backbone.conv1.weight, torch.ones(64, 3, 7, 7))


def test_a_checkpoint_starts_a_net_for_other_classes_when_the_classifiers_are_kept():
    net, trained = small_net(num_classes=5), small_net(num_classes=3)
    with pytest.raises(ValueError, match=r"head.bottleneck.3.weight: \[3, 128, 1, 1\], needed \[5, 128, 1, 1\]"):
        load(net, trained.state_dict())
    load(net, trained.state_dict(), keep=("head.bottleneck.3.", "auxiliary.3."))
    assert torch.equal(net.head.convb[0].weight, trained.head.convb[0].weight)
    assert net.head.bottleneck[3].weight.shape == (5, 128, 1, 1)


def test_a_part_that_is_missing_is_named_entry_by_entry():
    published = blank("official", "resnet50")
    for lost in ("layer4.1.", "head.bottleneck.3."):
        kept = {name: value for name, value in published.items() if not name.startswith(lost)}
        with pytest.raises(ValueError, match=f"{len(published) - len(kept)} missing: {lost}") as refused:
            from_official(kept)
        assert all(name in str(refused.value) for name in published.keys() - kept.keys())
        assert "of another shape" not in str(refused.value)


def test_a_double_net_takes_the_exact_mean_from_a_single_precision_checkpoint():
    net = build_ccnet(backbone="resnet50", num_classes=19, recurrence=2).double()
    load(net, from_official(blank("official", "resnet50")))
    assert net.pixel_mean.flatten().tolist() == [122.67891434, 116.66876762, 104.00698793]
