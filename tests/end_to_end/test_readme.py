"""The README's lines for your own data, typed one after the other, while the stack of `make demo` is up."""

import os
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.folders import noise

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```\n(.*?)```", README, re.DOTALL)
SHORT = (
    "model.backbone=small data.crop_size=49 train.global_batch=2 train.steps=2 train.validate_every=2 train.log_every=1 "
    "evaluate.scale=1 tracking.register_as=null"
)
"""So that a training takes seconds."""
NOISE = ("Traceback", "Found multiple active Ray instances")


def block(words: str) -> str:
    """The one block of the README with these words."""
    (found,) = (text for text in BLOCKS if words in text)
    return found


def folder_as_drawn(root: Path) -> Path:
    """The folder of the section `Your own data`: images/train/a.jpg, masks/train/a.png and so on, and its classes.yaml."""
    folder, classes = root / "mine", re.search(r"^mine/classes.yaml +(\[.*?\]) ", README, re.MULTILINE)
    assert classes
    for split, number in (("train", 6), ("val", 2)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(number):
            mask = np.zeros((64, 64), np.uint8)
            mask[:, 20 + i :], mask[40:, :30] = 1, 2
            cv2.imwrite(str(folder / f"images/{split}/{split}{i}.jpg"), noise(i, 64) // 2 + 60 * mask[..., None])
            cv2.imwrite(str(folder / f"masks/{split}/{split}{i}.png"), mask)
    (folder / "classes.yaml").write_text(classes[1])
    return folder


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A folder that has of the repository what the lines name."""
    for name in (".venv", "jobs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def typed(lines: str, folder: Path) -> str:
    """What the lines print, typed into one shell; none may fail or print what frightens a newcomer."""
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS" and not name.startswith("AWS_")}
    variables |= {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", lines], cwd=folder, env=variables, capture_output=True, text=True, timeout=400, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-4000:]
    assert not [words for words in NOISE if words in printed], printed
    return done.stdout


def pages(command: str, folder: Path) -> str:
    """The answer of MLflow's server to a question for its experiments; `command` starts it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = f"source .venv/bin/activate; exec {command} --port {port}"
    with subprocess.Popen(["bash", "-ec", words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline, address = time.monotonic() + 60, f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=10"
            while True:
                try:
                    return str(urllib.request.urlopen(address, timeout=5).read().decode())
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
        finally:
            server.terminate()


@pytest.mark.slow
def test_its_lines_train_show_and_use_a_model(stack: dict[str, str], shell: Path) -> None:
    mine = folder_as_drawn(shell)
    *commands, ui = block('SETTINGS="name=mine').splitlines()
    lines = "\n".join(commands).replace('data.source=/path/to/mine"', f'data.source={mine} {SHORT}"')
    assert SHORT in lines
    settings = next(line for line in lines.splitlines() if line.startswith("SETTINGS="))
    printed = typed(lines, shell)
    assert "0 errors" in printed
    model = re.search(r"^model +(\S+)$", printed, re.MULTILINE)
    shown = re.search(r"^pictures +(\S+)$", printed, re.MULTILINE)
    assert model
    assert shown
    drawn = {path.stem for path in Path(shown[1]).iterdir()}
    assert drawn == {
        "training_batch", "class_histogram", "panel", "worst_images", "attention", "confusion_matrix", "learning_curve",
    }  # fmt: skip
    assert '"name": "camvid"' in pages(ui, shell), "the experiment of the configuration"

    image = mine / "images/val/val0.jpg"
    (shell / "image.jpg").write_bytes(image.read_bytes())
    predict, export = (
        re.search(rf"`(ccnet {verb} [^`]*)`", README[README.index("## Use the model") :]) for verb in ("predict", "export")
    )
    assert predict
    assert export
    of_use = [
        "source .venv/bin/activate",
        settings,
        predict[1].replace("MODEL", model[1]).replace("IMAGES...", "image.jpg").replace("FOLDER", "masks"),
        export[1].replace("CONFIG.yaml", "jobs/configs/camvid.yaml $SETTINGS"),
    ]
    typed("\n".join(of_use), shell)
    with_ccnet, _, with_onnx = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    python = (
        with_ccnet.replace("outputs/models/mine-0123abcd", model[1])
        + "\nfirst = mask\n"
        + with_onnx
        + "\nassert (mask == first).all()"
    )
    (shell / "use.py").write_text(python)
    typed("source .venv/bin/activate\npython use.py", shell)
    assert cv2.imread(str(shell / "masks/image.png"), cv2.IMREAD_UNCHANGED).shape == (64, 64)
