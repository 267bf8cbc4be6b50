"""Scores that are not finite: no command takes their arg max for a class, and a validation of a training counts them as wrong."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import cli
from jobs import evaluate as evaluate_verb
from jobs import predict as predict_verb
from pipeline.checkpoints import checkpoint
from pipeline.config.config import Config
from pipeline.config.load import override
from pipeline.data import synthetic
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.evaluation import evaluate, inference, panels
from pipeline.images import codec
from pipeline.loading.batches import evaluation_samples
from pipeline.storage.store import open_store
from tests.support import untrained

NOT_FINITE = "the network's scores are not finite: its weights, or the image, hold NaN or infinity (a training that diverged, or"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A data set, and the checkpoint of a network that has diverged."""
    made = untrained.make(tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("checkpoint"))
    net, _ = inference.load_network(made, manifest_of(made))
    with torch.no_grad():
        net.head.conva[0].weight[0, 0] = float("nan")
    folder = tmp_path_factory.mktemp("diverged")
    progress = {"step": 2, "metrics": {"miou": 0.6}, "model": untrained.MODEL, "class_names": synthetic.NAMES, "score": None}
    checkpoint.save(folder, checkpoint.snapshot(net, torch.optim.SGD(net.parameters(), lr=0.1)), progress)
    checkpoint.upload(folder, open_store(f"{made.runs_url}/{made.run_key}", made.storage), checkpoint.folder_name(2))
    return made


def manifest_of(config: Config) -> Manifest:
    return read_manifest(open_store(config.data_url, config.storage))


def written(path: Path, config: Config) -> str:
    path.write_text(json.dumps(config.record()))
    return str(path)


def test_evaluate_names_checkpoint_and_sample(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(evaluate_verb.run, [written(tmp_path / "config.yaml", config)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    answer = printed.err.splitlines()[-1]
    assert f"/{checkpoint.folder_name(2)}: has no score: sample val-0: {NOT_FINITE}" in answer
    assert answer.endswith("; set evaluate.checkpoint to another one")


def test_predict_writes_no_mask_and_names_each_image(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(codec.encode_png(synthetic.sample(0, 0, 40)[0]))
    asked = override(config, {"predict.images": str(tmp_path / "in"), "predict.output": str(tmp_path / "out")})
    assert cli.main(predict_verb.run, [written(tmp_path / "config.yaml", asked)]) == 1
    assert f"{tmp_path}/in/a.png: {NOT_FINITE}" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_validation_goes_on_with_every_pixel_wrong(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    """The steps of a training that diverges decide whether it ends, not its validation."""
    manifest, device = manifest_of(config), torch.device("cpu")
    net, _ = inference.load_network(config, manifest)
    samples = list(evaluation_samples(config, manifest, "val", [0, 3, 7], 1.0))
    with caplog.at_level(logging.WARNING):
        counts, seen = evaluate.evaluate_samples(net, samples, len(manifest.class_names), device)
    assert {number: each.wrong for number, each in seen.items()} == {0: 1.0, 3: 1.0, 7: 1.0}
    assert counts.confusion.counts.sum() == sum(int((sample.label != codec.IGNORE).sum()) for sample in samples)
    assert (counts.confusion.miou(), counts.boundary.miou()) == (0.0, 0.0)
    assert f"count as wrong: 3 (first: sample val-0: {NOT_FINITE}" in caplog.text


def test_pictures_of_a_validation_show_no_class(config: Config) -> None:
    manifest, device = manifest_of(config), torch.device("cpu")
    net, _ = inference.load_network(config, manifest)
    pictures = panels.of_validation(config, manifest, net, device, [0], [3])
    assert list(pictures) == ["panel", "worst_images"]
    assert np.isfinite(pictures["panel"]).all()
