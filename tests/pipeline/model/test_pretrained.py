"""A network starts from the checkpoint in `model.weights`, or an error names the mistake."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ccnet import build_ccnet
from pipeline.config.load import load, override
from pipeline.config.model import WEIGHTS_BY_NAME
from pipeline.errors import ConfigError
from pipeline.model import pretrained
from pipeline.model.learner import network_arguments
from pipeline.model.pretrained import CLASSIFIERS, EMBEDDING, Pretrained, load_pretrained, read_pretrained
from pipeline.storage.store import Store
from tests.ccnet.test_weights import blank


def config(weights: Path | str | None, form: str = "ccnet", *overrides: str) -> Any:
    named = [] if weights is None else [f"model.weights={weights}", f"model.weights_format={form}"]
    return load("jobs/configs/demo.yaml", [*named, *overrides])


def net(num_classes: int = 6, **others: Any) -> Any:
    return build_ccnet(backbone="small", num_classes=num_classes, recurrence=2, **others)


def equal(one: dict[str, Tensor], other: dict[str, Tensor], names: set[str]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names)


def mistakes(settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read_pretrained(settings)
    return raised.value.mistakes


def test_random_weights_are_nothing_to_read() -> None:
    assert read_pretrained(config(None)) is None


def test_the_same_classes_take_everything(endpoint: str, credentials: None, tmp_path: Path) -> None:
    """The weights are read from a bucket, as on a cluster."""
    store, source = Store("s3://weights", endpoint), net()
    store._fs().mkdir("weights")
    torch.save(source.state_dict(), tmp_path / "net.pt")
    store.write("published/net.pt", (tmp_path / "net.pt").read_bytes())
    initial = read_pretrained(config("s3://weights/published/net.pt", "ccnet", f"storage.endpoint={endpoint}"))
    assert initial is not None
    learner = net()
    load_pretrained(learner, initial, 6)
    assert equal(learner.state_dict(), source.state_dict(), set(source.state_dict()))


def test_imagenet_by_name_is_the_backbone_of_torchvision_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file here is not the published one, which needs a network; its name has its own hash."""
    torch.save({name: tensor.clone() for name, tensor in blank("torchvision", "resnet18").items()}, tmp_path / "net.pth")
    data = (tmp_path / "net.pth").read_bytes()
    name = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setitem(pretrained.PUBLISHED["imagenet"][1], "resnet18", name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "ccnet").mkdir()
    (tmp_path / "ccnet" / name).write_bytes(data)
    made = load("jobs/configs/demo.yaml", ["model.backbone=resnet18", "model.weights=imagenet"])
    assert (made.model.weights, made.model.stem, made.model.weights_format) == ("imagenet", "plain", "torchvision")
    initial = read_pretrained(made)
    assert initial is not None
    learner = build_ccnet(**network_arguments(made, 6))
    load_pretrained(learner, initial, 6)
    assert (learner.state_dict()["backbone.layer1.0.conv1.weight"] == 1).all()


def test_cityscapes_by_name_is_the_whole_network_of_mmsegmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file here is not the published one, which needs a network; its name has its own hash."""
    torch.save(
        {"state_dict": {name: tensor.clone() for name, tensor in blank("mmseg", "resnet50").items()}}, tmp_path / "net.pth"
    )
    data = (tmp_path / "net.pth").read_bytes()
    published = pretrained.PUBLISHED["cityscapes"][1]["resnet50"]
    name = re.sub("[0-9a-f]{8}[.]pth", hashlib.sha256(data).hexdigest()[:8] + ".pth", published)
    monkeypatch.setitem(pretrained.PUBLISHED["cityscapes"][1], "resnet50", name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "ccnet" / name.rpartition("/")[2]
    file.parent.mkdir()
    file.write_bytes(data)
    words = ["model.backbone=resnet50", "model.weights=cityscapes"]
    made = load("jobs/configs/demo.yaml", words)
    assert (made.model.variant, made.model.weights_format, made.model.align_corners) == ("mmseg", "mmseg", True)
    initial = read_pretrained(made)
    assert initial is not None
    learner = build_ccnet(**network_arguments(made, 19))
    load_pretrained(learner, initial, 19)
    assert (learner.state_dict()["backbone.layer1.0.conv1.weight"] == 1).all()
    contradicting = load(
        "jobs/configs/demo.yaml", ["model.backbone=resnet50", "model.weights=cityscapes", "model.align_corners=false"]
    )
    with pytest.raises(ConfigError, match="was trained with True"):
        read_pretrained(contradicting)


@pytest.mark.parametrize(("weights", "other"), [("imagenet", "resnet18"), ("cityscapes", "resnet50")])
def test_weights_by_name_have_nothing_for_the_smallest_backbone(weights: str, other: str) -> None:
    with pytest.raises(ConfigError, match=rf"{weights}: backbone small has none \(try model\.backbone={other}"):
        load("jobs/configs/demo.yaml", [f"model.weights={weights}"])


def test_the_names_of_the_published_files_end_with_their_hash() -> None:
    for weights, (backbones, _) in WEIGHTS_BY_NAME.items():
        assert set(pretrained.PUBLISHED[weights][1]) == {*backbones}
        for backbone in backbones:
            url, sha256 = pretrained._published(weights, backbone)
            assert re.fullmatch("[0-9a-f]{8}", sha256)
            assert url.endswith(f"-{sha256}.pth")
            assert url.startswith("https://download.")


def test_other_classes_start_the_classifiers_from_random_weights() -> None:
    source, learner = net(19), net(6)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    load_pretrained(learner, Pretrained(source.state_dict(), ""), 6)
    fresh = {name for name in before if name.startswith(CLASSIFIERS)}
    assert len(fresh) == 4
    assert equal(learner.state_dict(), before, fresh)
    assert equal(learner.state_dict(), source.state_dict(), set(before) - fresh)


def test_the_embedding_of_the_consistent_loss_starts_from_random_weights_if_there_is_none_like_it() -> None:
    for theirs, mine in (({}, {"embedding_channels": 4}), ({"embedding_channels": 4}, {}), ({"embedding_channels": 8},) * 2):
        source, learner = net(**theirs), net(**mine)
        load_pretrained(learner, Pretrained(source.state_dict(), ""), 6)
        taken = {name for name in learner.state_dict() if theirs == mine or not name.startswith(EMBEDDING)}
        assert equal(learner.state_dict(), source.state_dict(), taken)


def test_a_backbone_leaves_the_heads_as_they_are() -> None:
    source, learner = net(), net()
    backbone = {name: tensor for name, tensor in source.state_dict().items() if name.startswith(("backbone.", "pixel_"))}
    head = learner.head.conva[0].weight.clone()
    load_pretrained(learner, Pretrained(backbone, ""), 6)
    assert equal(learner.state_dict(), source.state_dict(), set(backbone))
    assert torch.equal(learner.head.conva[0].weight, head)


def test_what_is_wrong_is_named_with_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    assert mistakes(config(file)) == [f"model.weights = {file}: no such file"]
    file.write_text("no checkpoint")
    (line,) = mistakes(config(file))
    assert line.startswith(f"model.weights = {file} (weights_format=ccnet): is damaged or cut short, or is no checkpoint (")
    torch.save(net().state_dict(), file)
    (line,) = mistakes(config(file, "mmseg"))
    assert "from_mmseg: cannot convert this checkpoint" in line
    torch.save(net(stem="plain").state_dict(), file)
    assert mistakes(config(file, "ccnet", "model.backbone=resnet50")) == [
        "model.backbone = 'resnet50': model.weights is of 'small' (set model.backbone=small)",
        "model.stem = 'deep': model.weights is of 'plain' (set model.stem=plain)",
    ]


def published(tmp_path: Path, name: str, **content: Any) -> Any:
    """Settings that start from a file of mmsegmentation: a ResNet-50 CCNet of ones."""
    torch.save(content | {"state_dict": blank("mmseg", "resnet50")}, tmp_path / name)
    return config(tmp_path / name, "mmseg", "model.backbone=resnet50", "model.variant=mmseg")


NAMED = "ccnet_r50-d8_{}_80k_cityscapes_20200617_010421-869a3423.pth"
WRONG = "model.align_corners = True: model.weights was trained with False (set model.align_corners=false)"


@pytest.mark.parametrize(
    ("name", "config_text", "trained"),
    [
        (NAMED.format("512x1024"), "", False),
        (NAMED.format("769x769"), "", True),
        ("own.pth", "decode_head=dict(\n type='CCHead', align_corners=False), auxiliary_head=dict(align_corners=False)", False),
        ("own.pth", "decode_head=dict(align_corners=True), auxiliary_head=dict(align_corners=True)", True),
    ],
)
def test_weights_of_mmsegmentation_are_resized_as_they_were_trained(
    tmp_path: Path, name: str, config_text: str, trained: bool
) -> None:
    """A net trained with align_corners=False, on crops of 8k pixels, scores less with True, and the reverse."""
    settings = published(tmp_path, name, meta={"config": config_text, "CLASSES": ("a", "b")})
    right = override(settings, {"model.align_corners": trained})
    assert read_pretrained(right) is not None
    assert network_arguments(right, 19)["align_corners"] is trained
    if not trained:
        assert mistakes(settings) == [WRONG]  # true is the default


def test_weights_that_do_not_tell_how_they_were_trained_need_the_setting(tmp_path: Path) -> None:
    settings = published(tmp_path, "own.pth")
    (line,) = mistakes(settings)
    assert line.startswith("model.align_corners is not set, and model.weights does not tell how it was trained: set false, as ")
    assert read_pretrained(override(settings, {"model.align_corners": True})) is not None


def test_weights_of_a_run_are_resized_as_its_record_says(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "net.pt")
    (tmp_path / "progress.json").write_text('{"model": {"align_corners": false}}')
    assert mistakes(config(tmp_path / "net.pt")) == [WRONG]
    assert read_pretrained(config(tmp_path / "net.pt", "ccnet", "model.align_corners=false")) is not None
    (tmp_path / "progress.json").write_text('{"model": {}}')  # of a version that always aligned
    assert read_pretrained(config(tmp_path / "net.pt")) is not None
    (mistake,) = mistakes(config(tmp_path / "net.pt", "ccnet", "model.align_corners=false"))
    assert "model.weights was trained with True (set model.align_corners=true)" in mistake


def test_the_imagenet_backbone_of_mmsegmentation_starts_the_backbone_alone(tmp_path: Path, caplog: Any) -> None:
    whole = blank("mmseg", "resnet50")
    alone = {name.removeprefix("backbone."): value for name, value in whole.items() if name.startswith("backbone.")}
    torch.save({"state_dict": alone | {"fc.weight": torch.ones(1000, 2048), "fc.bias": torch.ones(1000)}}, tmp_path / "v1c.pth")
    settings = config(tmp_path / "v1c.pth", "mmseg", "model.backbone=resnet50", "model.variant=mmseg")
    initial = read_pretrained(settings)
    assert initial is not None
    learner = build_ccnet(**network_arguments(settings, 6))
    head = learner.head.conva[0].weight.clone()
    with caplog.at_level(logging.INFO, logger="pipeline.model.pretrained"):
        load_pretrained(learner, initial, 6)
    assert caplog.messages == ["model.weights holds a backbone alone: the heads start from random weights"]
    assert torch.equal(learner.head.conva[0].weight, head)
    assert torch.equal(learner.backbone.conv3.weight, torch.ones(64, 32, 3, 3))
    assert learner.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
