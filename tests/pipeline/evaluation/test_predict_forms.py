"""The forms of results, and the list of all: what they hold, and that a rerun knows each by itself."""

import hashlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import ccnet
from ccnet.inference import predict_logits
from pipeline.config.config import Config
from pipeline.config.evaluate import Predict
from pipeline.config.load import override
from pipeline.data import synthetic
from pipeline.data.classes import CITYSCAPES, CITYSCAPES_CLASS_IDS
from pipeline.data.manifest import open_data
from pipeline.delivery.predictor import Model
from pipeline.delivery.record import ModelRecord
from pipeline.errors import ConfigError
from pipeline.evaluation.inference import load_network
from pipeline.evaluation.predict import predict, predict_files
from pipeline.evaluation.results import LIST, sealed
from pipeline.images import codec
from tests.support import delivered, untrained

IMAGE = synthetic.sample(0, 0, 40)[0][:, :24]
PNG = codec.encode_png(IMAGE)
FORMS = {
    "ids": {},
    "palette": {"predict.masks": "palette"},
    "confidence": {"predict.confidence": True},
    "no overlay": {"predict.overlay": False},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    images = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        (images / f"{name}.png").write_bytes(PNG)
    made = untrained.make(tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("checkpoint"))
    return override(made, {"predict.images": str(images)})


def results(config: Config, output: Path, **form: object) -> dict[str, bytes]:
    predict(override(config, {"predict.output": str(output), **form}))
    return {path.name: path.read_bytes() for path in output.iterdir()}


def lines(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / LIST).read_text().splitlines()]


def test_pillow_reads_the_numbers_of_a_mask_with_a_palette_and_opencv_its_colours(config: Config, tmp_path: Path) -> None:
    ids = codec.decode_label(results(config, tmp_path / "ids")["a.png"])
    data = results(config, tmp_path / "palette", **{"predict.masks": "palette"})["a.png"]
    mask = Image.open(io.BytesIO(data))
    assert mask.mode == "P"
    assert mask.getpalette()[: 3 * len(synthetic.COLORS)] == np.ravel(synthetic.COLORS).tolist()
    assert np.array_equal(np.asarray(mask), ids)
    assert len(np.unique(ids)) > 1
    colors = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(colors[..., ::-1], np.array(synthetic.COLORS)[ids])
    assert np.array_equal(codec.decode_label(data), ids), "it can be a label"


def test_the_confidence_is_the_probability_of_the_class_by_the_averaged_scores(config: Config, tmp_path: Path) -> None:
    made = override(config, {"evaluate.window": 33, "evaluate.scales": [0.5, 1.0], "evaluate.flip": True})
    files = results(made, tmp_path, **{"predict.confidence": True})
    net, _ = load_network(config, open_data(config))
    image = torch.from_numpy(IMAGE.copy()).permute(2, 0, 1)[None]
    probabilities = predict_logits(net, image, window=33, stride=23, scales=(0.5, 1.0), flip=True)[0].softmax(0).numpy()
    assert np.array_equal(codec.decode_label(files["a.png"]), probabilities.argmax(0))
    assert np.abs(codec.decode_label(files["a_confidence.png"]) - 255 * probabilities.max(0)).max() <= 0.51
    assert files["a.png"] == results(made, tmp_path / "plain")["a.png"]


def test_masks_for_the_cityscapes_server_hold_the_label_ids_of_the_data_set(tmp_path: Path) -> None:
    network = delivered.NETWORK | {"num_classes": 19}
    facts = delivered.facts() | {"network": network, "class_names": [*CITYSCAPES.names], "colors": [*CITYSCAPES.colors]}
    torch.manual_seed(0)
    net = ccnet.build_ccnet(**network)
    model = Model(net, ModelRecord(**facts, licence="", sha256="0" * 64), torch.device("cpu"))
    image = tmp_path / "in/berlin/berlin_000000_000019_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(PNG)
    words = model, [str(tmp_path / "in")], str(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"its server takes one PNG an image: set predict\.overlay=false"):
        list(predict_files(*words, Predict(masks="cityscapes")))
    (made,) = predict_files(*words, Predict(masks="cityscapes", overlay=False))
    (kept,) = predict_files(*words, Predict(masks="cityscapes", overlay=False))
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")] == [
        "berlin/berlin_000000_000019_leftImg8bit.png"
    ]
    classes = model.predict(IMAGE)
    mask = codec.decode_label(next((tmp_path / "out").rglob("*.png")).read_bytes())
    assert np.array_equal(mask, np.array(CITYSCAPES_CLASS_IDS)[classes])
    assert made.pixels == np.bincount(classes.ravel(), minlength=19).tolist()
    assert kept == made._replace(before=True)
    assert lines(tmp_path / "out")[0]["class_values"] == list(CITYSCAPES_CLASS_IDS)


def test_other_classes_than_those_of_cityscapes_are_refused_before_anything_is_written(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs the 19 classes of Cityscapes, found 6: background, .*set predict\.masks=ids"):
        results(config, tmp_path / "out", **{"predict.masks": "cityscapes", "predict.overlay": False})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS)
def test_another_form_gives_what_it_gives_in_an_empty_folder(config: Config, tmp_path: Path, first: str, second: str) -> None:
    """The resumed list is whole, and what a form does not write stays as it was."""
    expected = results(config, tmp_path / "alone", **FORMS[second])
    before = results(config, tmp_path / "both", **FORMS[first])
    assert results(config, tmp_path / "both", **FORMS[second]) == before | expected


def test_results_of_a_time_before_there_were_forms_are_kept(config: Config, tmp_path: Path) -> None:
    done = predict(override(config, {"predict.output": str(tmp_path)})).done[0]
    net, found = load_network(config, manifest := open_data(config))
    inference = {"scale": 1.0, "inference": "whole image", "window": None, "stride": None, "scales": [1.0], "flip": False}
    key = json.dumps([1, found.sha256, inference | {"recurrence": net.head.recurrence}, manifest.colors], sort_keys=True)
    made_of = hashlib.sha256(key.encode() + b"\0" + PNG).hexdigest()
    mask = codec.encode_png(codec.decode_label(Path(done.mask_url).read_bytes()))
    assert Path(done.mask_url).read_bytes() == sealed(mask, f"{config.predict.images}/a.png", made_of)


def test_the_list_says_what_was_predicted_and_with_what(config: Config, tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    (images / "a.png").write_bytes(PNG)
    (images / "b.png").write_bytes(b"")
    mask = codec.decode_label(results(config, tmp_path / "out", **{"predict.images": str(images)})["a.png"])
    head, line = lines(tmp_path / "out")
    _, found = load_network(config, open_data(config))
    assert head["model"] == {"checkpoint": found.url, "sha256": found.sha256, "step": 1, "mlflow_run": None}
    assert head["inference"]["window"] is None  # type: ignore[index]
    assert head["classes"] == list(synthetic.NAMES)
    assert head["colors"] == [list(color) for color in synthetic.COLORS]
    assert (head["masks"], head["num_images"]) == ("ids", 1)
    assert head["faults"] == [f"{images}/b.png: empty file: copy it again"]
    assert line == {
        "image": f"{images}/a.png",
        "mask": "a.png",
        "overlay": "a_overlay.png",
        "confidence": None,
        "sha256": hashlib.sha256(PNG).hexdigest(),
        "height": 40,
        "width": 24,
        "pixels": np.bincount(mask.ravel(), minlength=6).tolist(),
    }


def test_another_file_of_the_lists_name_is_refused_before_anything_is_written(config: Config, tmp_path: Path) -> None:
    (tmp_path / LIST).write_text("my notes\n")
    with pytest.raises(ConfigError, match=r"predictions\.jsonl would be replaced, but is no list of predictions"):
        results(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LIST]
    (tmp_path / LIST).unlink()
    whole = results(config, tmp_path)[LIST]
    for changed in (whole.replace(b"a_overlay", b"my_overlay"), whole.replace(b'"step": 1', b'"step": 2'), whole + b"{}\n"):
        (tmp_path / LIST).write_bytes(changed)
        with pytest.raises(ConfigError, match=r"or was changed since"):
            results(config, tmp_path)
        assert (tmp_path / LIST).read_bytes() == changed


def test_a_call_that_is_interrupted_leaves_the_list_as_it_was(config: Config, tmp_path: Path) -> None:
    model = Model(delivered.network(), ModelRecord(**delivered.facts(), licence="", sha256="0" * 64), torch.device("cpu"))
    words = model, [str(config.predict.images)], str(tmp_path)
    next(predict_files(*words))  # and no further
    assert not (tmp_path / LIST).exists()
    assert [each.before for each in predict_files(*words)] == [True, True]
    assert [line.get("mask") for line in lines(tmp_path)] == [None, "a.png", "b.png"]
    before = (tmp_path / LIST).read_bytes()
    next(predict_files(*words, Predict(masks="palette")))
    assert (tmp_path / LIST).read_bytes() == before
