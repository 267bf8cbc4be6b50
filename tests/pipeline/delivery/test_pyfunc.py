"""A delivered model as an MLflow model: loaded without this project, by MLflow's server, and after its folder is gone."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

import ccnet
from infra.processes import free_port
from pipeline.delivery import pyfunc
from tests.support.delivered import delivered
from tests.support.image_files import decoded, hostile, picture, turned

MISSING = {"ray", "s3fs", "jaxtyping", "optuna", "aiobotocore", "botocore"}
"""Packages of this project that are not among the requirements of the model, nor needed by them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return delivered(tmp_path_factory.mktemp("delivered") / "model")


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    path = folder.parent / "mlflow-model"
    pyfunc.save(path, "m-0", files={each.name: each.read_bytes() for each in folder.iterdir()}, run_id="f" * 32)
    return path


def test_it_loads_where_only_its_requirements_are_and_gives_the_same_masks(folder: Path, packed: Path, tmp_path: Path) -> None:
    images = {"a.png": picture(), "b.jpg": picture(".jpg"), "c.jpg": turned()}
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    code = f"""
import importlib.util, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            raise ImportError(f"{{name}} is not there")
sys.meta_path.insert(0, Refused())
assert importlib.util.find_spec("pipeline") is None, "the project must not be there"
from pathlib import Path
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model({str(packed)!r}, model_config={{"device": "cpu"}})
one = model.predict({{"image": Path("a.png").read_bytes()}})["mask"][0]
masks = model.predict(pandas.DataFrame({{"image": [Path(name).read_bytes() for name in {list(images)!r}]}}))["mask"]
assert masks[0] == one
for name, mask in zip({list(images)!r}, masks, strict=True):
    Path(name + ".mask").write_bytes(mask)
import ccnet, pipeline
assert {str(packed)!r} in ccnet.__file__ and {str(packed)!r} in pipeline.__file__
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=120)
    model = ccnet.load(folder, device="cpu")
    for name, data in images.items():
        expected = model.predict(tmp_path / name)
        np.testing.assert_array_equal(decoded((tmp_path / f"{name}.mask").read_bytes()), expected)
        np.testing.assert_array_equal(model.predict(data), expected)


def test_it_holds_no_pickle_and_says_what_it_takes(packed: Path) -> None:
    files = [path for path in packed.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin") or path.name == "uv.lock"]
    assert (packed / "data/model/model.safetensors").exists()
    info = mlflow.models.Model.load(str(packed))
    assert [(column.name, column.type.name) for column in info.signature.inputs] == [("image", "binary")]
    assert [(column.name, column.type.name) for column in info.signature.outputs] == [("mask", "binary")]
    requirements = (packed / "requirements.txt").read_text().split()
    assert [each.partition("==")[0] for each in requirements] == ["torch", "opencv-python", "safetensors", "numpy", "mlflow"]
    assert not [each for each in requirements if "+" in each]
    example = info.load_input_example(str(packed))
    mask = mlflow.pyfunc.load_model(str(packed)).predict(example)["mask"][0]
    assert decoded(mask).shape == (48, 64)


@pytest.mark.parametrize("kind", hostile())
def test_what_is_no_image_to_predict_is_refused_with_a_sentence(packed: Path, kind: str) -> None:
    model = mlflow.pyfunc.load_model(str(packed))
    with pytest.raises(MlflowException, match=r"^image 1: \w") as raised:
        model.predict({"image": [picture(), hostile()[kind]]})
    assert raised.value.get_http_status_code() == 400


def test_the_largest_image_is_an_option(packed: Path) -> None:
    model = mlflow.pyfunc.load_model(str(packed), model_config={"max_pixels": 60 * 41 - 1})
    with pytest.raises(MlflowException, match=r"^image 0: 60 x 41 pixels: at most 2459 are predicted: cut the image into tiles"):
        model.predict({"image": [picture()]})


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """MLflow's own server of a model; gives its address."""
    port = free_port(0)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port), "--env-manager", "local"]
    here = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # as in an activated environment
    with open(model.parent / "serve.log", "wb") as log:
        process = subprocess.Popen(command, env=here, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=2):
                    break
            except OSError:
                assert process.poll() is None, (model.parent / "serve.log").read_text()
                time.sleep(0.2)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def asked(url: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def asking(*images: bytes) -> bytes:
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(data).decode()} for data in images]}).encode()


@pytest.mark.slow
def test_mlflows_server_answers_with_the_same_masks_and_refuses_the_rest(folder: Path, packed: Path) -> None:
    with serving(packed) as url:
        for data in (picture(), turned()):
            status, answer = asked(url, asking(data))
            assert status == 200, answer
            mask = base64.b64decode(json.loads(answer)["predictions"][0]["mask"])
            np.testing.assert_array_equal(decoded(mask), ccnet.load(folder, device="cpu").predict(data))
        for kind, data in hostile().items():
            status, answer = asked(url, asking(data))
            assert (status, "image 0: " in answer) == (400, True), (kind, answer[:300])
        wrong = ({}, {"image": 3}, {"picture": ""})
        for body in (b"", b"{", b"[]", b'{"inputs": [1]}', *(json.dumps({"dataframe_records": [row]}).encode() for row in wrong)):
            status, answer = asked(url, body)
            assert 400 <= status < 500, (body, answer[:300])
        assert asked(url, picture(), "image/png")[0] == 415
        assert asked(url, asking(picture()))[0] == 200, "it lives"
