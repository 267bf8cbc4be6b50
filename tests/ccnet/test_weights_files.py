"""Files of weights: both torch formats and safetensors are read; files with code, truncated and other files are refused."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ccnet import build_ccnet
from ccnet.weights import architecture, load, read_state


def test_a_state_survives_a_file_of_safetensors(tmp_path):
    state = build_ccnet(backbone="resnet18", num_classes=2, recurrence=1).state_dict()
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    read = read_state(tmp_path / "a.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], value) for name, value in state.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "meta": {"CLASSES": ["road"]}}, lambda s: {"model": s}]
)
def test_torch_files_of_both_formats_are_read_with_their_nesting(zipped, wrap, tmp_path):
    content = wrap({"module.bn1.weight": torch.ones(2)})
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert {name: value.tolist() for name, value in read_state(tmp_path / "a.pth").items()} == {"bn1.weight": [1, 1]}


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_in_it_is_refused_and_not_run(zipped, tmp_path):
    content = {"state_dict": {"bn1.weight": torch.ones(2)}, "hook": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"bad.pth: holds more than tensors and plain values.*weights_only=False"):
        read_state(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_that_is_no_checkpoint_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=f"{name}: is damaged or cut short, or is no checkpoint .* its size, 22 bytes"):
        read_state(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_a_file_that_is_cut_short_is_to_be_fetched_again_whatever_its_suffix(kind, tmp_path):
    state, file = {f"bn{i}.weight": torch.ones(64, 32) for i in range(2)}, tmp_path / "a.pth"
    if kind == "safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    assert read_state(file).keys() == state.keys()
    for length in [*range(0, len(whole), 509), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.pth: is damaged or cut short, or is no checkpoint ") as caught:
            read_state(file)
        assert f"compare its size, {length} bytes, with the original's" in str(caught.value)


def test_a_file_that_is_not_there_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "a.pth")


def test_values_that_are_no_tensors_are_named(tmp_path):
    torch.save({"bn1.weight": torch.ones(2), "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth: must hold only tensors.* \['epoch'\] are not"):
        read_state(tmp_path / "a.pth")


def test_a_list_is_no_state(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth: holds a list, must hold a dict of tensors"):
        read_state(tmp_path / "a.pth")


@pytest.mark.parametrize("keep", ["head.bottleneck.3.", ("hed.",)])
def test_prefixes_to_keep_that_no_name_has_are_an_error(keep):
    net = build_ccnet(backbone="resnet18", num_classes=2, recurrence=1)
    with pytest.raises(ValueError, match="must be a tuple of prefixes of names in the net"):
        load(net, net.state_dict(), keep=keep)


def test_the_embedding_and_by_a_slim_stem_the_variant_are_read_from_the_state():
    with torch.device("meta"):
        net = build_ccnet(
            backbone="resnet50", num_classes=2, recurrence=1, variant="mmseg", auxiliary=False, embedding_channels=7
        )
    found = architecture(net.state_dict())
    assert (found["variant"], found["auxiliary"], found["embedding_channels"]) == ("mmseg", False, 7)
