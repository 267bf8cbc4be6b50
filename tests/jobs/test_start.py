"""`jobs.start FOLDER`: what a newcomer types first, and what is answered to the usual mistakes."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import ccnet
from jobs.start import command
from pipeline.config.load import load
from pipeline.images.codec import UInt8, encode_jpeg, encode_png
from tests.support.folders import noise, rows_of
from tests.support.pictures import saved

ROOT = Path(__file__).parents[2]
TINY = ["model.backbone=small", "data.crop_size=17", "train.global_batch=2"]


def disc(number: int) -> UInt8:
    """A mask uint8[24, 24] of 0 and 255."""
    return np.asarray(cv2.circle(np.zeros((24, 24), np.uint8), (12, 12), 4 + number % 7, 255, -1), np.uint8)


def mine(folder: Path, label: Callable[[int], UInt8 | bytes] = disc, number: int = 10) -> Path:
    """Images and masks of 24 x 24 pixels in images/ and masks/."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(number):
        mask = label(i)
        (folder / f"images/{i}.jpg").write_bytes(encode_jpeg(noise(i)))
        (folder / f"masks/{i}.png").write_bytes(mask if isinstance(mask, bytes) else encode_png(mask))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, apart from the images."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_a_dry_run_shows_what_the_training_comes_to_and_writes_the_settings_only(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mine(tmp_path / "My Cracks")
    before = sorted(folder.rglob("*"))
    assert command([str(folder), *TINY, "--minutes", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for line in (r"images +\d in train, \d in val", r"classes +2: background, foreground", r"time +about \d+ minutes on \d+ CPU",
                 r"memory +[\d.]+ [MG]", r"disk +[\d.]+ [MG]", r"settings +my-cracks\.yaml", "nothing was prepared"):  # fmt: skip
        assert re.search(line, out), out
    assert [path.name for path in here.iterdir()] == ["my-cracks.yaml"]
    assert sorted(folder.rglob("*")) == before
    config = load(here / "my-cracks.yaml")
    assert (config.data.source, config.model.backbone, config.data.crop_size) == (str(folder), "small", (17, 17))
    assert config.stop.hours == pytest.approx(2 / 60, abs=1e-4)


def test_settings_that_exist_are_used_as_they_are(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mine(tmp_path / "cracks")
    assert command([str(folder), *TINY, "--dry-run"]) == 0
    edited = (here / "cracks.yaml").read_text().replace("name: foreground", "name: crack")
    (here / "cracks.yaml").write_text(edited)
    assert command([str(folder), "--dry-run"]) == 0
    assert "2: background, crack" in capsys.readouterr().out
    assert (here / "cracks.yaml").read_text() == edited


def as_jpeg(i: int) -> bytes:
    return saved(disc(i), "jpeg")


def swapped(folder: Path) -> None:
    (folder / "images").rename(folder / "x")
    (folder / "masks").rename(folder / "images")
    (folder / "x").rename(folder / "masks")
    for path in (folder / "masks").iterdir():
        path.with_suffix(".png").write_bytes(encode_png(noise(int(path.stem))))
        path.unlink()


def polygons(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        path.with_suffix(".txt").write_text("0 0.1 0.1 0.9 0.9 0.1 0.9\n")
        path.unlink()


MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "no such folder": (lambda root: None, [], "no such folder"),
    "a file": (lambda root: root.write_text("x"), [], "is a file: give the folder"),
    "an empty folder": (lambda root: root.mkdir(), [], "no file|empty"),
    "images without masks": (
        lambda root: [path.unlink() for path in (mine(root) / "masks").iterdir()],
        [],
        "no images with masks",
    ),
    "images and masks swapped": (lambda root: swapped(mine(root)), [], "swapped"),
    "images and masks swapped, the masks all alike": (
        lambda root: swapped(mine(root, lambda i: disc(0), number=12)),
        [],
        "its 12 images are all the same: are images and masks swapped",
    ),
    "masks as JPEG by name": (
        lambda root: [path.rename(path.with_suffix(".jpg")) for path in (mine(root, as_jpeg) / "masks").iterdir()],
        [],
        r"masks: no files \*\.png.* \(10 \.jpg there\): JPEG and WebP change class ids",
    ),
    "masks as JPEG": (lambda root: mine(root, as_jpeg), [], "JPEG changes the class ids: export it again as PNG"),
    "masks with soft edges": (
        lambda root: mine(root, lambda i: np.asarray(cv2.GaussianBlur(disc(i), (3, 3), 1), np.uint8)),
        [],
        "smoothed the edges|no classes",
    ),
    "polygons": (lambda root: polygons(mine(root)), [], "polygons and boxes are not read"),
    "one class only": (lambda root: mine(root, lambda i: rows_of(0)), [], "nothing to learn"),
    "one image": (lambda root: mine(root, number=1), [], "val"),
    "a setting that does not exist": (mine, ["train.lerning_rate=0.1"], "did you mean train.learning_rate"),
    "an override without =": (mine, ["train.steps", "100"], "must have the form dotted.key=value"),
    "no minutes": (mine, ["--minutes", "0"], "--minutes"),
    "a class table with a typo": (
        lambda root: (mine(root) / "classes.yaml").write_text("[background, {id: x}]"),
        [],
        "classes.yaml",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_newcomers_mistake_is_answered_by_cause_and_fix_in_three_lines(
    mistake: str, tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words, answer = MISTAKES[mistake]
    make(tmp_path / "mine")
    assert command([str(tmp_path / "mine"), *words, "--dry-run"]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(answer, "\n".join(lines)), lines
    assert len(lines) <= 3, lines
    assert not any("Traceback" in line for line in lines)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("label", "classes", "answer"),
    [
        (
            lambda i: np.ascontiguousarray(disc(i)[::2, ::2]),
            None,
            "label is 12 x 12 pixels, its image 24 x 24 .*9 more",
        ),
        (
            lambda i: rows_of(1, 2, 3),
            "[road, car, tree]",
            "look like classes from 1, .* write `classes: .*` into classes.yaml",
        ),
        (lambda i: rows_of(0, 255), "[background, crack]", "255 is the class `crack`, write `classes: .*` into classes.yaml"),
    ],
    ids=["another size", "ids from 1", "0/255 and two classes"],
)
def test_a_fault_that_all_masks_share_is_answered_once(
    label: Callable[[int], UInt8],
    classes: str | None,
    answer: str,
    tmp_path: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = mine(tmp_path / "mine", label)
    if classes:
        (folder / "classes.yaml").write_text(classes)
    assert command([str(folder), *TINY]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("measuring", "prepare: "))]
    assert len(lines) <= 3, lines
    assert re.search(answer, "\n".join(lines)), lines
    assert not list((here / "outputs").rglob("*.parquet"))


def test_a_folder_above_the_current_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mine(tmp_path / "mine"))
    assert command(["."]) == 1
    assert "run the command in another folder" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert command(["mine", f"storage.path={tmp_path}/mine/out"]) == 1
    assert "choose another storage.path" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.yaml"))


def test_settings_of_another_folder_are_not_taken(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(mine(tmp_path / "a/mine")), *TINY, "--dry-run"]) == 0
    assert command([str(mine(tmp_path / "b/mine")), *TINY, "--dry-run"]) == 1
    assert "give this one a name: --name NAME" in capsys.readouterr().err
    assert command([str(tmp_path / "b/mine"), *TINY, "--dry-run", "--name", "other"]) == 0
    assert {path.name for path in here.iterdir()} == {"mine.yaml", "other.yaml"}


@pytest.mark.slow
def test_a_newcomers_folder_becomes_a_model_that_is_used(tmp_path: Path, here: Path) -> None:
    """40 images, masks of 0 and 255 with a suffix beside them, one image a .tif; an empty home."""
    folder = tmp_path / "Risse im Asphalt"
    folder.mkdir()
    for i in range(40):
        picture, mask = noise(i, 96), np.zeros((96, 96), np.uint8)
        cv2.circle(mask, (20 + i, 48), 16, 255, -1)
        picture[mask == 255] //= 4
        (folder / f"IMG_{i:04d}{'.tif' if i == 7 else '.jpg'}").write_bytes(saved(picture, "tiff" if i == 7 else "jpeg"))
        (folder / f"IMG_{i:04d}_seg.png").write_bytes(encode_png(mask))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS" and not name.startswith("AWS_")}
    variables |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "jobs", "start", str(folder), "--minutes", "1.5", "model.backbone=small"]
    done = subprocess.run(words, cwd=here, env=variables, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stdout + done.stderr
    assert re.search(r"^mIoU +0\.\d{4}", done.stdout, re.MULTILINE)
    pictures, model = (re.search(rf"^{name} +(/\S.*)$", done.stdout, re.MULTILINE) for name in ("pictures", "model"))
    assert pictures
    assert model
    assert len(list(Path(pictures[1]).rglob("*_overlay.png"))) == 4
    assert ccnet.load(model[1], device="cpu").predict(next(folder.glob("*.jpg"))).shape == (96, 96)
    assert "next:" in done.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in here.iterdir()} == {"risse-im-asphalt.yaml", "outputs", "mlflow.db", "mlartifacts"}
