"""`jobs.predict MODEL IMAGES...`: a delivered model, without configuration, data set or cluster."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import ccnet
from jobs.predict import command
from pipeline.evaluation.results import LIST
from pipeline.images import codec
from tests.support.delivered import NOISE, delivered


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images, one in a folder of its own, and a text. The current folder has a model in `model`."""
    folder = tmp_path / "pictures"
    for name in ("a.jpg", "in/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix, NOISE)[1].tobytes())
    (folder / "notes.txt").write_text("no image")
    delivered(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return folder


def test_masks_and_overlays_are_those_of_the_model(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["model", str(images), "--out", "results"]) == 0
    out = tmp_path / "results"
    *addresses, last = capsys.readouterr().out.splitlines()
    assert addresses == [f"{out}/a.png  {out}/a_overlay.png", f"{out}/in/b.png  {out}/in/b_overlay.png"]
    assert re.fullmatch(r"2 images predicted in \d+ s \([\d.e+]+ images/s\)", last)
    assert command(["model", str(images), "--out", "results"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 images predicted, 2 of them by an earlier call"
    expected = ccnet.load("model", device="cpu").predict([images / "a.jpg", images / "in/b.png"])
    for mask, name in zip(expected, ("a.png", "in/b.png"), strict=True):
        np.testing.assert_array_equal(codec.decode_label((out / name).read_bytes()), mask)
    assert codec.decode_image((out / "a_overlay.png").read_bytes()).shape == NOISE.shape


def test_the_forms_are_those_of_the_settings(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["model", str(images / "a.jpg"), "--masks", "palette", "--no-overlay", "--confidence"]) == 0
    out = tmp_path / "predictions"
    assert capsys.readouterr().out.startswith(f"{out}/a.png  {out}/a_confidence.png\n")
    scores = ccnet.load("model", device="cpu").scores(images / "a.jpg")
    mask, confidence = (codec.decode_label((out / name).read_bytes()) for name in ("a.png", "a_confidence.png"))
    np.testing.assert_array_equal(mask, scores.argmax(0))
    probabilities = np.exp(scores - scores.max(0))
    assert np.abs(confidence - 255 * (probabilities / probabilities.sum(0)).max(0)).max() < 0.51
    head, line = map(json.loads, (out / LIST).read_text().splitlines())
    assert (head["model"]["sha256"], head["model"]["step"], head["masks"]) == ("a" * 64, 40, "palette")
    assert (line["mask"], line["overlay"], line["confidence"]) == ("a.png", None, "a_confidence.png")


def test_files_and_folders_together_go_to_predictions_and_again_replace_only_their_own(images: Path, tmp_path: Path) -> None:
    words = ["model", str(images / "in"), str(images / "a.jpg")]
    assert command(words) == 0
    assert command(words) == 0
    names = {str(path.relative_to(tmp_path)) for path in (tmp_path / "predictions").rglob("*.png")}
    assert names == {f"predictions/{name}" for name in ("a.png", "a_overlay.png", "b.png", "b_overlay.png")}


def test_what_is_wrong_with_an_image_is_that_images_fault(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "c.png").write_bytes((images / "in/b.png").read_bytes()[:200])
    assert command(["model", str(images)]) == 1
    done = capsys.readouterr()
    assert "2 images predicted" in done.out
    assert f"{images}/c.png: " in done.err
    assert "images not predicted, named above: 1" in done.err


def test_two_images_of_one_name_are_named_and_neither_is_predicted(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["model", str(images / "a.jpg"), str(images / "a.jpg")]) == 1
    done = capsys.readouterr()
    assert "0 images predicted" in done.out
    assert f"{images}/a.jpg: its result would be that of {images}/a.jpg too" in done.err


@pytest.mark.parametrize(
    ("words", "code", "answer"),
    [
        (["nowhere", "pictures"], 1, "nowhere: no model, which is a folder with model.json and model.safetensors"),
        (["model", "nothing"], 1, "nothing: "),
        (["model", "model"], 1, "no image found; files left out: "),
        (["model", "pictures", "--out", "pictures"], 1, "results would lie in predict.images"),
        (["model", "s4://bucket"], 1, "s4://bucket: must be s3://BUCKET/PREFIX or a folder"),
        (["model", "pictures", "--masks", "cityscapes"], 1, "needs the 19 classes of Cityscapes, found 3: road, car, sign/"),
        (["model"], 2, "the following arguments are required: IMAGES"),
        (["model", "pictures", "--to", "x"], 2, "unrecognized arguments: --to"),
    ],
)
def test_what_cannot_be_done_is_answered_in_a_sentence(
    words: list[str], code: int, answer: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    assert command(words) == code
    assert answer in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
