"""Export delivers a checked file and its record, or nothing."""

import hashlib
import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from ccnet import CCNet, build_ccnet, build_optimizer
from jobs import cli, export
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import load
from pipeline.data.manifest import Manifest, Split, write_manifest
from pipeline.storage.store import open_store

MODEL = {"backbone": "small", "num_classes": 2, "recurrence": 2}
NAMES, COLORS = ("near", "far"), ((1, 2, 3), (4, 5, 6))


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """File of a configuration whose data set is packed; checkpoints can be saved for it."""
    path = tmp_path / "toy.yaml"
    data = "{name: toy, layout: generated, crop_size: [33, 41]}"
    model = "{backbone: small, recurrence: 2}"
    path.write_text(f"name: toy\nstorage: {{path: {tmp_path}}}\ndata: {data}\nmodel: {model}\n")
    config = load(path)
    empty = Split(0, "index", "", 0, (0, 0), (0, 0), 0, (0, 0), (0, 0))
    manifest = Manifest("toy", "generated", NAMES, COLORS, {0: 0, 1: 1}, {"train": empty, "val": empty}, True, "source")
    write_manifest(open_store(config.data_url, config.storage), manifest)
    return path


def save(config: Config, folder: Path, net: CCNet) -> checkpoint.Checkpoint:
    """A checkpoint of the configuration's run, as training writes it."""
    folder.mkdir()
    model = MODEL | {"recurrence": net.head.recurrence}
    score = {"class_names": NAMES, "protocol": {"data": "toy", "inference": "whole image"}}
    progress = {"step": 10, "model": model, "metrics": {"miou": 0.5}, "score": score, "class_names": score["class_names"],
                "protocol": score["protocol"]}  # fmt: skip
    checkpoint.save(folder, checkpoint.snapshot(net, build_optimizer(net, 0.1, 0.9, 1e-4)), progress)
    runs = open_store(f"{config.runs_url}/{config.run_key}", config.storage)
    checkpoint.upload(folder, runs, "step-000010")
    return checkpoint.load(runs, "step-000010")


def test_the_best_checkpoint_becomes_a_checked_file_with_its_record(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(settings)
    saved = save(config, tmp_path / "saved", build_ccnet(**MODEL))
    assert cli.main(export.run, [str(settings), "export.result=classes"]) == 0
    file, record = (tmp_path / "exports" / f"{config.run_key}-classes.{kind}" for kind in ("onnx", "json"))
    printed = capsys.readouterr().out
    assert f"file    {file}" in printed
    assert "1 x 33 x 41" in printed
    written = json.loads(record.read_text())
    assert written["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert written["checkpoint"] == {
        "url": saved.url,
        "sha256": saved.sha256,
        "step": 10,
        "recurrence": 2,
        "miou": 0.5,
        "caveat": None,
        "protocol": {"data": "toy", "inference": "whole image"},
    }
    assert (written["result"], written["recurrence"], written["opset"]) == ("classes", 2, 20)
    assert (written["class_names"], written["colors"]) == (["near", "far"], [[1, 2, 3], [4, 5, 6]])
    assert len(written["checked"]) == 6
    assert written["largest_difference"] <= 1e-4
    properties = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    assert json.loads(properties["class_names"]) == ["near", "far"]


def test_a_network_whose_scores_are_no_numbers_is_not_delivered(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = build_ccnet(**MODEL | {"recurrence": 0})  # with attention the export would take half as long again
    torch.nn.init.constant_(net.head.conva[1].weight, float("nan"))
    save(load(settings, ["model.recurrence=0"]), tmp_path / "saved", net)
    output = f"export.output={tmp_path / 'out' / 'toy.onnx'}"
    assert cli.main(export.run, [str(settings), "model.recurrence=0", output]) == 1
    error = capsys.readouterr().err
    assert "nothing was delivered: " in error
    assert "1x33x41: nan" in error
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("output", ["s3://bucket/models", "s3://models.onnx"])
def test_an_address_that_is_no_onnx_file_is_refused(settings: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(export.run, [str(settings), f"export.output={output}"]) == 1
    assert f"export.output = '{output}': must be a .onnx file in a folder or bucket" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["json", "onnx"])
def test_a_file_that_is_no_export_is_not_replaced(
    kind: str, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / f"toy.{kind}"
    file.parent.mkdir()
    file.write_text('{"shapes": [], "sha256": 1}')
    assert cli.main(export.run, [str(settings), f"export.output={tmp_path / 'out' / 'toy.onnx'}"]) == 1
    assert capsys.readouterr().err == (
        f"{file} was not replaced: it is no export, or was changed since: move it, or choose another export.output\n"
    )
    assert file.read_text() == '{"shapes": [], "sha256": 1}'


def test_an_export_is_replaced_by_the_next_unless_it_was_changed(settings: Path, tmp_path: Path) -> None:
    save(load(settings, ["model.recurrence=0"]), tmp_path / "saved", build_ccnet(**MODEL | {"recurrence": 0}))
    file = tmp_path / "out" / "toy.onnx"
    command = [str(settings), "model.recurrence=0", f"export.output={file}"]
    assert [cli.main(export.run, command), cli.main(export.run, command)] == [0, 0]
    changed = file.read_bytes() + b"\0"
    file.write_bytes(changed)
    assert cli.main(export.run, command) == 1
    assert file.read_bytes() == changed
