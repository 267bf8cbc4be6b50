"""The benchmarks of the training step and of the launchers: both sides are measured and do the same work."""

import json
import multiprocessing
from contextlib import nullcontext

import pytest
import torch

from jobs import benchmark as job
from pipeline.benchmark.device import gflop
from pipeline.benchmark.launchers import measure_launchers
from pipeline.benchmark.network import NetworkFigure, assert_same_loss
from pipeline.benchmark.tables import launchers_tables
from pipeline.config.config import Config
from pipeline.config.load import load

# Ray's settings objects raise Ray's own deprecation warnings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", r"ignore::FutureWarning:ray\.")


def config(name: str, tmp_path) -> Config:
    small = ["data.crop_size=33", "train.global_batch=2", "benchmark.rounds=1", "benchmark.steps=2"]
    return load(f"jobs/configs/{name}.yaml", [f"storage.path={tmp_path}", *small])


def test_products_in_place_are_counted_too():
    total, left, right = torch.zeros(3, 5), torch.ones(3, 4), torch.ones(4, 5)
    assert gflop(lambda: total.addmm_(left, right)) == gflop(lambda: left @ right) == 2 * 3 * 4 * 5 / 1e9


def test_both_recipes_train_alike(tmp_path, capsys):
    assert job.run(config("bench_step", tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    ours, published = (json.loads(line) for line in lines if line.startswith("{"))
    assert (ours["recipe"], published["recipe"]) == ("ours", "published")
    assert published["speedup"] == 1
    assert ours["speedup"] > 0
    assert ours["loss_difference"] < 1e-3
    assert ours["gflop"] == pytest.approx(published["gflop"], rel=0.01)
    assert all(0 < f["share_of_peak"] < 2 and f["peak_mib"] > 0 for f in (ours, published))
    assert any(line.startswith("training step of resnet18, crop 33 x 33, R = 2, 2 images") for line in lines)


@pytest.mark.parametrize(("difference", "refused"), [(0.019, False), (0.021, True), (float("nan"), True)])
def test_losses_that_differ_by_two_percent_end_the_benchmark(difference, refused):
    figure = NetworkFigure("ours", "resnet18", (33, 33), 2, 2, "bf16", False, "cpu", 1, *[1.0] * 7, difference)
    with pytest.raises(AssertionError, match="the loss differs from the published recipe's by") if refused else nullcontext():
        assert_same_loss([figure])


@pytest.mark.slow
def test_both_launchers_run_the_loop_in_turns_and_alone(tmp_path):
    [figures] = measure_launchers(config("bench_launchers", tmp_path), counts=(1,))
    assert [f.launcher for f in figures] == ["Ray Train", "torchrun"]
    assert all(f.workers == 1 and 0 < f.lowest_s <= f.step_s <= f.highest_s < f.whole_s for f in figures)
    assert all(0 < f.alone_s < f.whole_s for f in figures)
    assert figures[0].ratio == pytest.approx(figures[0].step_s / figures[1].step_s), "one round: its own ratio"
    assert figures[1].ratio == 1
    assert "x torchrun" in launchers_tables(figures)
    assert not multiprocessing.active_children()
