"""The benchmark of the operator: every block is measured, and blocks that claim to be the same compute the same."""

import json
import multiprocessing

import pytest
import torch

from jobs import benchmark as job
from pipeline.benchmark.baselines import AllPixels, NonLocal
from pipeline.benchmark.operator import OURS, PUBLISHED, Case, _agree, _Made
from pipeline.config.config import Config
from pipeline.config.load import load


@pytest.fixture
def config(tmp_path) -> Config:
    overrides = [f"storage.path={tmp_path}", "benchmark.rounds=1", "benchmark.maps=[[1, 16, 5, 6]]"]
    return load("jobs/configs/bench_operator.yaml", overrides)


def test_all_pixels_by_torch_is_the_non_local_block():
    torch.manual_seed(0)
    ours, theirs, x = AllPixels(16), NonLocal(16), torch.randn(2, 16, 5, 6)
    theirs.load_state_dict(ours.state_dict())
    for block in (ours, theirs):
        torch.nn.init.ones_(block.gamma)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("precision", ["float32", "fp16", "bf16"])
def test_blocks_that_differ_by_more_than_rounding_are_not_timed(precision):
    ours, published = (_Made(Case(name, (1, 16, 5, 6), 2, precision), torch.device("cpu")) for name in (OURS, PUBLISHED))
    _agree(ours, published)
    published.block.gamma.data *= 1.2
    with pytest.raises(AssertionError, match="ours differs from the published block by"):
        _agree(ours, published)


def test_a_run_prints_a_line_for_each_block_and_a_table(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each peak is measured in a process forked from one that has imported everything: six imports would be most of the run.
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["pipeline.benchmark.operator", "torch.fx.experimental.symbolic_shapes"])
    monkeypatch.setattr("pipeline.benchmark.operator.SPAWN", forkserver)
    assert job.run(config) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(f["block"], f["recurrence"]) for f in figures] == [
        ("ours", 1), ("published", 1), ("non-local", 1), ("all pixels (SDPA)", 1), ("ours", 2), ("published", 2)
    ]  # fmt: skip
    assert all(0 < f["forward_s"] < 60 and f["lowest_s"] <= f["both_s"] <= f["highest_s"] for f in figures)
    ours, published = figures[:2]
    assert (ours["computed_by"], published["computed_by"]) == ("kernels" if torch.cuda.is_available() else "products", None)
    assert ours["kept_mib"] < published["kept_mib"]
    assert ours["gflop"] == pytest.approx(published["gflop"]), "the same products"
    assert sum(line.startswith("1 x 16 x 5 x 6, R = ") for line in lines) == 2
