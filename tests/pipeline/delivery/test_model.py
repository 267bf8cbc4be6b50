"""A delivered model: what its folder holds, that it predicts like the network it was made of, and what else is at an address."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import ccnet
from ccnet.inference import predict_classes
from pipeline.delivery.deliver import deliver
from pipeline.delivery.predictor import Model
from pipeline.delivery.record import CARD, RECORD, WEIGHTS
from pipeline.errors import ModelError
from pipeline.storage.store import Store
from tests.support.buckets import make_bucket
from tests.support.delivered import CLASSES, NOISE, delivered, facts, network

ROOT = Path(__file__).parents[3]
MISSING = {"ray", "mlflow", "pydantic", "fsspec", "s3fs", "pyarrow", "yaml", "jaxtyping", "matplotlib", "psutil"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A delivered model."""
    return delivered(tmp_path / "models/streets-0123abcd")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A JPEG of 60 x 41 pixels."""
    path = tmp_path / "ein Bild #1.jpg"
    path.write_bytes(cv2.imencode(".jpg", NOISE)[1].tobytes())
    return path


def test_a_folder_holds_weights_record_and_card(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, RECORD, CARD])
    record = json.loads((folder / RECORD).read_text())
    assert (record["format"], record["class_names"], record["network"]["recurrence"]) == ("ccnet-model", CLASSES, 2)
    card = (folder / CARD).read_text()
    assert f"model = ccnet.load('{folder}')" in card
    assert "| mIoU | 0.5000 (val split, 4 images, step 40) |" in card
    assert "| 2 | sign/ | absent |" in card
    assert "The weights learned from the data set streets: check whether their licences allow" in card


def test_a_model_predicts_as_its_network_does(folder: Path, picture: Path) -> None:
    model = ccnet.load(folder, device="cpu")
    pixels = cv2.imread(str(picture), cv2.IMREAD_COLOR_RGB)
    expected = predict_classes(network(), torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].numpy()
    mask = model.predict(str(picture))
    assert (mask.dtype, mask.shape) == (np.uint8, (41, 60))
    assert np.unique(mask).size > 1
    for found in (mask, model.predict(picture), model.predict(pixels), *model.predict([picture, pixels])):
        np.testing.assert_array_equal(found, expected)
    scores = model.scores(picture)
    assert (scores.dtype, scores.shape) == (np.float32, (3, 41, 60))
    np.testing.assert_array_equal(scores.argmax(0), expected)
    assert model.classes == tuple(CLASSES)
    assert model.colors[1] == (0, 0, 142)


def test_a_model_predicts_with_the_inference_of_its_training(tmp_path: Path, picture: Path) -> None:
    options: dict[str, Any] = {"scale": 0.5, "window": [17, 17], "stride": [12, 12], "scales": [1.0, 1.5], "flip": True}
    address = deliver(Store(str(tmp_path / "m")), network().state_dict(), facts(**options)).address
    half = cv2.resize(cv2.imread(str(picture), cv2.IMREAD_COLOR_RGB), (30, 20), interpolation=cv2.INTER_LINEAR)
    image = torch.from_numpy(half).permute(2, 0, 1)[None]
    expected = predict_classes(network(), image, (41, 60), window=17, stride=12, scales=(1.0, 1.5), flip=True)[0].numpy()
    np.testing.assert_array_equal(ccnet.load(address, device="cpu").predict(picture), expected)


def test_a_photo_is_predicted_upright(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (41, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    assert ccnet.load(folder, device="cpu").predict(tmp_path / "a.jpg").shape == (60, 41)


def test_a_model_needs_only_torch_safetensors_and_opencv(folder: Path, picture: Path, tmp_path: Path) -> None:
    code = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            raise ImportError(f"{{name}} is not there")
sys.meta_path.insert(0, Refused())
import ccnet
ccnet.load({str(folder)!r}, device="cpu").predict({str(picture)!r}).tofile({str(tmp_path / "mask")!r})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=120)
    mask = np.fromfile(tmp_path / "mask", np.uint8).reshape(41, 60)
    np.testing.assert_array_equal(mask, ccnet.load(folder, device="cpu").predict(picture))


def test_a_model_in_a_bucket(endpoint: str, credentials: None, monkeypatch: pytest.MonkeyPatch, picture: Path) -> None:
    prefix = make_bucket(endpoint)
    address = deliver(prefix.join("models", "streets-0123abcd"), network().state_dict(), facts()).address
    assert address == prefix.url("models/streets-0123abcd")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert ccnet.load(address, device="cpu").predict(picture).shape == (41, 60)
    with pytest.raises(ModelError, match=r"/other: no model, which is a folder with model\.json"):
        ccnet.load(prefix.url("other"))


def test_a_delivery_again_writes_nothing_and_a_better_checkpoint_replaces_it(folder: Path, picture: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    store = Store(str(folder))
    deliver(store, network().state_dict(), facts())
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    earlier = ccnet.load(folder, device="cpu").predict(picture)
    deliver(store, network(1).state_dict(), facts())
    assert (ccnet.load(folder, device="cpu").predict(picture) != earlier).any()


def test_an_edited_card_is_kept_and_another_is_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, card = Store(str(folder)), folder / "README.md"
    better = facts() | {"score": facts()["score"] | {"miou": 0.75}}
    deliver(store, network(1).state_dict(), better)
    assert "0.7500" in card.read_text()
    card.write_text("# Mine")
    deliver(store, network(2).state_dict(), facts())
    assert card.read_text() == "# Mine"
    assert "README.md: was edited and is kept" in caplog.text
    expected = predict_classes(network(2), torch.from_numpy(NOISE).permute(2, 0, 1)[None])[0].numpy()
    np.testing.assert_array_equal(ccnet.load(folder, device="cpu").predict(NOISE), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / WEIGHTS).unlink(),
            "no model, which is a folder with model.json and model.safetensors (No such",
        ),
        (lambda folder: (folder / RECORD).unlink(), "no model, which is a folder with model.json and model.safetensors (No such"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x"), "model.safetensors is not the file that model.json names: copy"),
        (lambda folder: (folder / RECORD).write_text("{}"), "model.json cannot be read (it is not the record of a model)"),
        (lambda folder: (folder / RECORD).write_text("no json"), "model.json cannot be read (Expecting value"),
        (lambda folder: (folder / RECORD).write_text("[]"), "model.json cannot be read ("),
        (
            lambda folder: (folder / RECORD).write_text((folder / RECORD).read_text().replace('"version": 1', '"version": 2')),
            "written by a later version of this package",
        ),
    ],
)
def test_what_is_no_model_is_named_with_the_way_out(folder: Path, change: Any, words: str) -> None:
    change(folder)
    with pytest.raises(ModelError) as raised:
        ccnet.load(folder)
    assert str(raised.value).startswith(f"{folder}: {words}")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("missing.jpg", "missing.jpg: No such file or directory"),
        ("text.png", "text.png: "),
        (np.zeros((3, 8, 8), np.uint8), r"an image is uint8\[H, W, 3\] in RGB, found uint8\[3, 8, 8\]"),
        (np.zeros((8, 8, 3), np.float32), r"found float32\[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"found uint8\[0, 8, 3\]"),
    ],
)
def test_what_is_no_image_is_named(folder: Path, tmp_path: Path, image: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no image")
    with pytest.raises(ValueError, match=words):
        ccnet.load(folder, device="cpu").predict(image)


def test_the_model_is_put_on_the_named_device(folder: Path) -> None:
    model = ccnet.load(folder, device="cpu")
    assert isinstance(model, Model)
    assert next(model.net.parameters()).device == torch.device("cpu")
