"""torch.compile compiles the whole head as one graph and changes no result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of compile_worker.py."""
    file = tmp_path_factory.mktemp("compile") / "results.pt"
    script = Path(__file__).with_name("compile_worker.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-W", "error", str(script), str(file)], env=environment, check=True, timeout=300)
    return torch.load(file)


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_the_compiled_head_has_the_scores_gradients_and_statistics_of_the_eager_one(mode, results):
    eager, compiled = results[mode]["eager"], results[mode]["compiled"]
    assert eager.keys() == compiled.keys()
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)  # eager adds up in another order
    assert eager["gradient/attention.query.weight"].abs().max() > 0


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_the_head_is_one_graph(mode, results):
    assert results[mode]["num_graph_breaks"] == 0


def test_one_compilation_serves_every_size(results):
    for eager, compiled in results["sizes"]:
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_passes_over_a_batch_compile_the_head_once(results):
    scores, num_compilations = results["parts"]
    for eager, compiled in scores:
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)
    assert num_compilations == 1
