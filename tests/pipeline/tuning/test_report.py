"""The page of a search."""

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from pipeline.evaluation.metrics import Score
from pipeline.storage.lease import Claim
from pipeline.storage.store import Store
from pipeline.training.run import Run
from pipeline.tuning.journal import Report, Trial
from pipeline.tuning.report import TITLES, write_page
from pipeline.tuning.result import SearchResult
from tests.pipeline.preflight.test_resources import config

SPACE = {
    "train.learning_rate": {"log": [0.001, 0.1]},
    "model.recurrence": {"choice": [1, 2]},
    "model.gamma_init": {"uniform": [0, 1], "when": {"model.recurrence": [2]}},
}
PROTOCOL = {"split": "val", "boundary_dilation_ratio": 0.02, "miou_interval": {"level": 0.95}}
VALIDATED = Score([[8, 2], [1, 9]], ("road & kerb", "<car>"), 3, PROTOCOL, [[1, 1], [2, 2]])
EVALUATED = VALIDATED._replace(counts=[[9, 1], [1, 9]], interval=(0.7, 0.9), attention_off_miou=0.6)
RECORDED = {"step": 40, "model_url": "/models/mine", "checkpoint_url": "/runs/mine-search-0001/step-000040"}
POINT = {"train.learning_rate": 0.02, "model.recurrence": 1}


def page(folder: Path, score: Score | None = EVALUATED, stopped: str = "", **settings: Any) -> str:
    """The page of a search whose second trial won and whose first one was stopped early."""
    winner = Trial("0001", POINT, 50, "complete", "", (Report(50, VALIDATED.miou, 3.0),), 60.0, 45.0, miou=VALIDATED.miou,
                   score=score._asdict() if score else None)  # fmt: skip
    other = Trial("0000", {**POINT, "model.recurrence": 2}, 10, "failed", "no memory for <this>", seconds=6.0)
    store, made = Store(str(folder)), config(tune__space=SPACE, train__steps=50, **settings)
    run = Run(made, cast(Any, None), store, "", "f" * 32, Claim(store, ""))
    result = SearchResult("f" * 32, "", [winner, other], 50, VALIDATED, "/models/mine", "report", stopped, threads=2)
    written = write_page(run, "mine-search-01234567", result, RECORDED)
    assert (folder / "report.html").read_bytes() == written
    return written.decode()


def test_the_page_has_winner_trials_pictures_space_and_commands(tmp_path: Path) -> None:
    png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    for name in TITLES:
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / f"pictures/{name}.png").write_bytes(png)
    shown = page(tmp_path)
    interval = "95 % interval over images 0.7000 to 0.9000"
    assert f"<h1>mIoU {EVALUATED.miou:.4f} on 3 images of val of g ({interval}): trial 0001, the best of 2</h1>" in shown
    assert shown.index(TITLES["search"]) < shown.index(TITLES["search_settings"]) < shown.index("Where it is")
    assert shown.count("<img ") == 2
    for text in (
        "R = 1: the best checkpoint of trial 0001, of step 40 of 50. Its score is that of jobs.evaluate (tune.evaluate)",
        "<td>0001</td>", f"{100 * VALIDATED.miou:.1f}%, transparent", "<td>failed</td>",
        "trial 0000 failed: no memory for &lt;this&gt;", "1.1 min of trials", "road &amp; kerb", "&lt;car&gt;",
        "<td>log: 0.001 to 0.1</td><td>0.02</td>", "<td>uniform: 0 to 1, where model.recurrence is 2</td><td>-</td>",
        "python -m jobs.train CONFIG.yaml train.threads=2 train.learning_rate=0.02 model.recurrence=1\n", "winner.yaml",
        "ccnet.load(", "/models/mine", "/runs/mine-search-0001/step-000040", "f" * 32, "steps: 50",
    ):  # fmt: skip
        assert text in shown, text
    assert "momentum" not in shown, "only what was set"
    assert "ended early" not in shown


def test_the_page_says_that_the_search_ended_early_and_whose_score_it_shows(tmp_path: Path) -> None:
    shown = page(tmp_path, score=None, stopped="tune.hours = 2 are spent: a larger value resumes the search")
    assert "<p>The search ended early: tune.hours = 2 are spent: a larger value resumes the search.</p>" in shown
    assert f"<h1>mIoU {VALIDATED.miou:.4f} on 3 images of val of g: trial 0001" in shown
    assert "Its score is that of its validation" in shown


def test_the_page_does_not_hold_the_password_of_the_database(tmp_path: Path) -> None:
    shown = page(tmp_path, tracking__uri="postgresql://me:secret@host/runs")
    assert "postgresql://" in shown
    assert "secret" not in shown
