"""The page of a training."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config.load import parse
from pipeline.evaluation.metrics import Score
from pipeline.fault_tolerance.goodput import ABOUT, Goodput
from pipeline.reports.training import TITLES, write_page
from pipeline.storage.store import Store

CONFIG = {
    "name": "mine",
    "storage": {"path": "/somewhere"},
    "data": {"name": "roads", "layout": "generated", "crop_size": 33},
    "model": {"backbone": "small", "recurrence": 2},
    "train": {"steps": 50},
}
PROTOCOL = {"split": "val", "boundary_dilation_ratio": 0.02}
SCORE = Score([[8, 2], [1, 9]], ("road & kerb", "<car>"), 3, PROTOCOL, [[1, 1], [2, 2]])
SPENT = Goodput(stepping=90.0, lost=30.0, steps=60, worker_s=240.0).points(parse(CONFIG))
RECORDED = {"step": 40, "model_url": "/models/mine", "checkpoint_url": "/runs/mine/step-000040", "protocol": PROTOCOL}


def test_the_page_has_score_pictures_settings_and_commands(tmp_path: Path) -> None:
    png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    for name in ("panel", "learning_curve"):
        (tmp_path / f"pictures/{name}.png").parent.mkdir(exist_ok=True)
        (tmp_path / f"pictures/{name}.png").write_bytes(png)
    written = write_page(parse(CONFIG), Store(str(tmp_path)), "pictures", SCORE, RECORDED, "f" * 32, SPENT)
    assert (tmp_path / "report.html").read_bytes() == written
    page = written.decode()
    assert f"mIoU {SCORE.miou:.4f} on 3 images of val of roads" in page
    assert page.count("<img ") == 2, "those that were drawn"
    assert page.index(TITLES["learning_curve"]) < page.index(TITLES["panel"]) < page.index("Where it is")
    assert TITLES["attention"] not in page
    for text in ("step 40 of 50", "road &amp; kerb", "&lt;car&gt;", "/models/mine", "recurrence: 2", "ccnet.load(", "f" * 32):
        assert text in page, text
    assert "momentum" not in page, "only what was set"
    assert "Goodput 75 % of 2 min stepping (lost 25%), " in page
    assert f'{ABOUT["lost"]}</td><td style="background: linear-gradient(90deg, #c9ddf0 25.0%' in page


def test_the_page_of_a_run_that_an_older_version_trained_says_nothing_of_its_time(tmp_path: Path) -> None:
    page = write_page(parse(CONFIG), Store(str(tmp_path)), "pictures", SCORE, RECORDED, "f" * 32, {}).decode()
    assert "time went" not in page


def test_the_page_does_not_hold_the_password_of_the_database(tmp_path: Path) -> None:
    config = parse(CONFIG | {"tracking": {"uri": "postgresql://me:secret@host/runs"}})
    page = write_page(config, Store(str(tmp_path)), "pictures", SCORE, RECORDED, "f" * 32, SPENT).decode()
    assert "postgresql://" in page
    assert "secret" not in page


@pytest.mark.parametrize("names", [("<script>alert(1)</script>", "a"), ("a\udcff", "b")])
def test_a_name_of_any_kind_is_shown_as_text(tmp_path: Path, names: tuple[str, str]) -> None:
    page = write_page(
        parse(CONFIG), Store(str(tmp_path)), "pictures", SCORE._replace(class_names=names), RECORDED, "0" * 32, SPENT
    )
    assert b"<script" not in page
    assert page.decode()
