"""Fixtures: golden numbers and their tolerance, relative to max(1, max |expected|) as in tests/golden/README.md; workers."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from ccnet import dispatch
from tests.ccnet.device import DEVICE

GOLDEN = Path(__file__).parents[1] / "golden"
PARAMETERS = {
    "wq": "query.weight",
    "bq": "query.bias",
    "wk": "key.weight",
    "bk": "key.bias",
    "wv": "value.weight",
    "bv": "value.bias",
    "gamma": "gamma",
}


@pytest.fixture
def interpreter_that_patches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes Triton's interpreter patch triton.language once a kernel and not in each device function, which doubles the time."""
    if DEVICE == "cuda":
        return
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        if id(function.__globals__) in patched:
            return interpreter._LangPatchScope()
        scope = patch(function)
        patched.add(id(function.__globals__))
        restore = scope.restore

        def restore_all():  # called at the end of a kernel, not of a device function
            restore()
            patched.clear()

        scope.restore = restore_all
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)


@pytest.fixture
def triton_kernels(interpreter_that_patches_once: None) -> ModuleType:
    """`ccnet.kernels`, which run on DEVICE."""
    pytest.importorskip("triton")
    return importlib.import_module("ccnet.kernels")


@pytest.fixture(params=["products", "kernels"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Selects an implementation of the operator, batched products or the kernels; returns the device for it."""
    found = request.getfixturevalue("triton_kernels") if request.param == "kernels" else None
    monkeypatch.setattr(dispatch, "kernels", lambda x: found)
    return DEVICE if found else "cpu"


@pytest.fixture
def golden() -> Callable[[str], dict[str, Tensor]]:
    """golden(name): the arrays of one file as tensors."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}

    return load


@pytest.fixture
def parameters() -> dict[str, str]:
    """Short names of the attention's parameters in the golden files -> our names, in two and in three dimensions."""
    return PARAMETERS


@pytest.fixture
def within() -> Callable[[Tensor, Tensor, float], None]:
    """within(actual, expected, tolerance): assert closeness."""

    def check(actual: Tensor, expected: Tensor, tolerance: float) -> None:
        assert actual.shape == expected.shape
        scale = max(1.0, expected.abs().max().item())
        assert (actual.double() - expected.double()).abs().max().item() <= tolerance * scale

    return check


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, dict[str, Tensor]]]]:
    """The results of worker.py: (one worker on the whole batch, [worker 0 of 2, worker 1 of 2])."""
    folder = tmp_path_factory.mktemp("workers")
    script = Path(__file__).with_name("worker.py")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(Path(__file__).parents[2])}
    for world in (1, 2):
        commands = [[sys.executable, "-W", "error", str(script), str(rank), str(world), str(folder)] for rank in range(world)]
        processes = [subprocess.Popen(command, env=environment) for command in commands]
        try:
            assert [process.wait(timeout=120) for process in processes] == [0] * world
        finally:
            for process in processes:
                process.kill()
    return torch.load(folder / "1_0.pt"), [torch.load(folder / f"2_{rank}.pt") for rank in range(2)]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the type checks of the tests: a user's call has none, and must get the sentence of ccnet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
