"""The examples in the documentation run, and the tests that it names exist."""

import ast
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import mlflow.pyfunc
import numpy as np
import pytest

import ccnet
from ccnet.export import export_onnx
from pipeline.delivery import pyfunc
from pipeline.tracking import models, registry, runs
from tests.pipeline.tracking.test_runs import settings
from tests.support import gpu_memory
from tests.support.delivered import NOISE, delivered, network

ROOT = Path(__file__).parents[1]
PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_library_examples_run_as_they_stand() -> None:
    """Runs the first two examples, one after the other; the third reads published weights."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "model.md").read_text(), re.DOTALL)[:2]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(examples)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    scores, *steps = [line.split() for line in done.stdout.splitlines()]
    assert len(scores) == 3
    assert [applied for _, _, applied in steps] == ["True", "True"]


def test_the_readme_uses_a_model_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the lines for a delivered model and those for an ONNX file; both masks are those of the model."""
    with_ccnet, _, with_onnx = PYTHON
    delivered(tmp_path / "outputs/models/mine-0123abcd")
    (tmp_path / "image.jpg").write_bytes(cv2.imencode(".jpg", NOISE)[1].tobytes())
    export_onnx(network(), tmp_path / "mine.onnx", result="classes")
    monkeypatch.chdir(tmp_path)
    masks: list[dict[str, np.ndarray]] = [{}, {}]
    for names, lines in zip(masks, (with_ccnet, with_onnx), strict=True):
        exec(lines, names)
    assert masks[0]["mask"].shape == NOISE.shape[:2]
    assert len(np.unique(masks[0]["mask"])) > 1
    np.testing.assert_array_equal(masks[0]["mask"], masks[1]["mask"])


@pytest.mark.slow
def test_the_readme_uses_the_copy_in_mlflow_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, with_mlflow, _ = PYTHON
    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", delivered(tmp_path / "model")
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    run_id = runs.open_mlflow_run(settings(uri, name="readme"), environment={})
    write = partial(pyfunc.save, files=files, run_id=run_id)
    model_id = models.log_model(uri, run_id, models.Entry("m", "", "a" * 64, 1, {}, ()), write)
    facts = {"checkpoint_url": "/c", "sha256": "a" * 64, "miou": 0.5, "protocol": {}}
    registry.register(uri, run_id, "ccnet-demo", model_id=model_id, **facts)
    (tmp_path / "image.jpg").write_bytes(cv2.imencode(".jpg", NOISE)[1].tobytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    mlflow.set_tracking_uri(uri)
    try:
        exec(with_mlflow, names)
    finally:
        mlflow.set_tracking_uri(None)
    mask = cv2.imdecode(np.frombuffer(names["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask, ccnet.load(folder, device="cpu").predict("image.jpg"))


@pytest.mark.parametrize(("backbone", "crop"), [("resnet18", 513), ("resnet101", 769)])
def test_the_readme_has_the_images_that_are_counted_for_a_gpu(backbone: str, crop: int) -> None:
    pairs = zip(*(gpu_memory.images(backbone, crop, bf16) for bf16 in (False, True)), strict=True)
    cells = " | ".join(f"{single}, {half}" for single, half in pairs)
    assert f"| {backbone}, {crop} | {cells} |\n" in (ROOT / "README.md").read_text()


def test_each_picture_is_small_and_shown_with_words_for_it() -> None:
    """150 kB and 1000 pixels at most."""
    shown = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for words, picture in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text()):
            shown[page.parent / picture] = words
    assert all(len(words.split()) > 5 for words in shown.values()), shown
    pictures = [*(ROOT / "docs" / "img").iterdir()]
    assert {*pictures} <= {*shown}
    for picture in pictures:
        assert picture.stat().st_size <= 150_000, picture
        assert cv2.imread(str(picture)).shape[1] <= 1000, picture
    assert all(picture.is_file() for picture in shown)


CHAOS = {"tests/chaos/__main__.py", "tests/chaos/faults.py"}


def where_it_runs(file: str, name: str) -> str:
    """The first command that runs a test. Raises KeyError if no test has this name."""
    if file in CHAOS:
        return "`make chaos`"
    tree = ast.parse((ROOT / file).read_text())
    marked = [
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    tests = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    marked += map(ast.unparse, tests[name].decorator_list)
    return (
        "`make test`" if any(re.search(r"mark\.slow", mark) for mark in marked if "parametrize" not in mark) else "`make check`"
    )


def test_each_promise_names_tests_that_are_there_and_where_they_run() -> None:
    rows = [line for line in (ROOT / "docs" / "promises.md").read_text().splitlines() if re.search(r"`tests/.*::", line)]
    assert len(rows) > 100
    for row in rows:
        *_, held, runs_in, _ = row.split(" | ") if row.endswith(" | ") else [*row.removesuffix(" |").split(" | "), ""]
        found = dict.fromkeys(where_it_runs(file, name) for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", held))
        assert held.startswith("none") or runs_in == ", ".join(found), row
