"""The metric points and the texts of where the time of a run went."""

import pytest

from pipeline.config.load import override, parse
from pipeline.fault_tolerance.goodput import ABOUT, PARTS, Goodput, rows, summary

CONFIG = parse(
    {
        "name": "mine",
        "storage": {"path": "/somewhere"},
        "data": {"name": "roads", "layout": "generated", "crop_size": 33},
        "model": {"backbone": "small", "recurrence": 2},
        "train": {"steps": 50, "global_batch": 8},
    }
)
SPENT = Goodput(stepping=60.0, waiting=10.0, validating=20.0, starting=10.0, steps=30, worker_s=200.0)


def test_the_points_keep_seconds_apart_from_shares_speed_and_cost() -> None:
    points = SPENT.points(CONFIG, flops=2 * 10**9)
    assert {key for key in points if key.startswith("wall/")} == {f"wall/{part}_s" for part in PARTS}
    assert points["work/goodput"] == 0.6
    assert points["work/images_per_stepping_s"] == 30 * 8 / 60
    assert points["work/gflop_per_stepping_s"] == 8.0
    assert points["work/worker_hours"] == 200 / 3600
    assert "work/cost" not in points
    assert "work/gflop_per_stepping_s" not in SPENT.points(CONFIG)
    priced = override(CONFIG, {"stop.cost_per_worker_hour": 36})
    assert SPENT.points(priced)["work/cost"] == pytest.approx(2.0)


def test_the_texts_say_where_the_time_went() -> None:
    priced = override(CONFIG, {"stop.cost_per_worker_hour": 36})
    assert summary(SPENT.points(priced, 2 * 10**9)) == (
        "60 % of 2 min stepping (waiting 10%, validating 20%, starting 10%), 4 images/s, 8 GFLOP/s, 0.0556 worker hours, cost 2"
    )
    assert rows(SPENT.points(CONFIG))[:2] == [(ABOUT["stepping"], "60.0 %", "60 s"), (ABOUT["waiting"], "10.0 %", "10 s")]


def test_a_run_that_an_older_version_trained_has_no_points() -> None:
    assert (Goodput().points(CONFIG), summary({}), rows({})) == ({}, "", [])
