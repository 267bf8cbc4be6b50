"""The head against the published one, and the settings of the whole network. test_weights.py tests its weights and scores."""

import inspect

import pytest
import torch
from torch import nn

from ccnet import RCCAHead, build_ccnet

PUBLISHED_NAMES = {"query": "query_conv", "key": "key_conv", "value": "value_conv", "gamma": "gamma"}  # our name -> name in cca


def published_name(name: str) -> str:
    """The published name of an entry of the head; only those of the attention differ from ours."""
    module, _, rest = name.partition(".")
    if module != "attention":
        return name
    layer, dot, kind = rest.partition(".")
    return f"cca.{PUBLISHED_NAMES[layer]}{dot}{kind}"


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
            value.copy_(z[f"p:{published_name(name)}"])
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


@pytest.mark.parametrize("recurrence", [1, 2])
def test_the_first_gamma_is_chosen_and_the_attention_can_be_turned_off(recurrence):
    torch.manual_seed(0)
    net = build_ccnet(backbone="small", num_classes=3, recurrence=recurrence, gamma_init=0.5).eval()
    plain = build_ccnet(backbone="small", num_classes=3, recurrence=0).eval()
    plain.load_state_dict(net.state_dict())
    assert (net.gamma, plain.gamma) == (0.5, None)
    image = torch.randint(0, 256, (1, 3, 33, 33), dtype=torch.uint8)
    with torch.no_grad():
        scores = net(image).logits
        with net.attention_off():
            assert torch.equal(net(image).logits, plain(image).logits)
        assert torch.equal(net(image).logits, scores)
    assert not torch.equal(scores, plain(image).logits)


@pytest.mark.parametrize("gamma", [float("nan"), float("inf")])
def test_gamma_starts_at_a_finite_number(gamma):
    with pytest.raises(
        ValueError, match=r"gamma_init = (nan|inf): must be a finite number \(0 as published, 1 as in the paper\)"
    ):
        build_ccnet(backbone="small", num_classes=3, recurrence=2, gamma_init=gamma)


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


def test_default_build_is_the_official_network():
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=1)
    assert net.backbone.maxpool.ceil_mode
    assert {m.dilation for m in net.backbone.layer4.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)} == {(4, 4)}
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.01}
    assert net.auxiliary[0].weight.shape == (128, 256, 3, 3)
    assert net.auxiliary[0].bias is not None


def test_the_network_of_mmsegmentation_has_relu_heads_half_the_auxiliary_width_and_no_ceil_mode():
    with torch.device("meta"):
        net = build_ccnet(backbone="resnet50", num_classes=2, recurrence=1, variant="mmseg")
    assert not net.backbone.maxpool.ceil_mode
    assert net.backbone.conv3.weight.shape == (64, 32, 3, 3)
    assert [net.backbone.layer4[i].conv2.dilation for i in range(3)] == [(2, 2), (4, 4), (4, 4)]
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.0}
    assert net.auxiliary[0].weight.shape == (256, 1024, 3, 3)
    assert net.auxiliary[0].bias is None


def test_every_parameter_of_the_network_of_mmsegmentation_gets_a_gradient():
    net = build_ccnet(backbone="resnet50", num_classes=2, recurrence=1, variant="mmseg")
    output = net(torch.zeros(2, 3, 17, 17, dtype=torch.uint8))
    (output.logits.sum() + output.aux_logits.sum()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_a_variant_takes_another_stem():
    with torch.device("meta"):
        net = build_ccnet(backbone="resnet50", num_classes=2, recurrence=1, variant="mmseg", stem="plain")
    assert net.backbone.conv1.weight.shape == (64, 3, 7, 7)


def test_mmsegmentation_has_no_network_of_basic_blocks():
    with pytest.raises(ValueError, match="backbone = 'resnet18': variant 'mmseg' needs resnet50 or resnet101"):
        build_ccnet(backbone="resnet18", num_classes=2, recurrence=1, variant="mmseg")


@pytest.mark.parametrize(("init", "variance"), [("kaiming", 2 / (9 * 512)), ("published", 1 / (3 * 9 * 512))])
def test_variance_of_the_first_weights_of_the_backbone(init, variance):
    torch.manual_seed(0)
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=1, init=init)
    assert net.backbone.layer4[1].conv2.weight.var().item() == pytest.approx(variance, rel=0.01)
    assert net.head.conva[0].weight.var().item() == pytest.approx(1 / (3 * 9 * 512), rel=0.01)  # PyTorch's default in both


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("variant", "'official', 'mmseg'"),
        ("stem", "None, 'deep', 'slim', 'plain'"),
        ("init", "'kaiming', 'published'"),
        ("embedding_layer", "'rcca_output', 'rcca_input'"),
    ],
)
def test_an_unknown_choice_is_an_error_that_lists_the_legal_ones(name, legal):
    unchecked = inspect.unwrap(build_ccnet)  # the type check of the signatures would raise first
    with pytest.raises(ValueError, match=f"^{name} = 'other': must be one of {legal}$"):
        unchecked(backbone="resnet18", num_classes=2, recurrence=1, **{name: "other"})


def test_a_head_too_narrow_for_its_attention_is_refused():
    with pytest.raises(ValueError, match="in_channels = 30: must be at least 32"):
        RCCAHead(30, 8, 2, 1)
