"""The Triton kernels against the plain formula in float64: compiled with CUDA, in Triton's interpreter without it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccnet import CrissCrossAttention
from tests.ccnet.device import DEVICE

triton = pytest.importorskip("triton")
kernels = importlib.import_module("ccnet.kernels")
pytestmark = pytest.mark.usefixtures("interpreter_that_patches_once")

SHAPES = [  # (B, H, W), D, C
    ((1, 1, 1), 1, 8),
    ((1, 1, 9), 8, 24),
    ((1, 8, 1), 20, 8),
    ((2, 5, 7), 64, 130),
    ((1, 17, 20), 20, 24),
    ((1, 2, 66), 65, 8),  # a row of two tiles, query and key of two tiles of channels
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}  # of the largest entry
NAMES = ["out", "lse", "grad_query", "grad_key", "grad_value"]


@pytest.fixture(autouse=True)
def interpreter_with_bfloat16(monkeypatch):
    """Fixes Triton 3.7's interpreter: it multiplies bfloat16 bits as integers and truncates where GPUs round to nearest even."""
    if DEVICE == "cuda":
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def dot_in_float32(self, left, right, *rest):
        if left.dtype.scalar == tl.bfloat16:
            left, right = cast(self, left, tl.float32), cast(self, right, tl.float32)
        return dot(self, left, right, *rest)

    def rounded(self, source, dtype):
        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, dtype)
        return TensorHandle(torch.tensor(source.data).to(torch.bfloat16).view(torch.uint16).numpy(), tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_in_float32)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", rounded)


def inputs(shape, reduced, channels, dtype=torch.float32, scale=1.0):
    """query, key, value and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    widths = (reduced, reduced, channels, channels)
    return [(scale * torch.randn(*shape, width, generator=generator)).to(DEVICE, dtype) for width in widths]


def computed(query, key, value, grad):
    out, norms = kernels.forward(query, key, value)
    lse = norms[..., 0] + norms[..., 1].log()
    return dict(zip(NAMES, (out, lse, *kernels.backward(grad, query, key, value, norms)), strict=True))


def expected(query, key, value, grad):
    """The formula, and autograd's gradients of it, in float64."""
    query, key, value = (x.double().requires_grad_() for x in (query, key, value))
    height = query.shape[1]
    column = torch.einsum("bhwd,bjwd->bhwj", query, key)
    column = column.masked_fill(torch.eye(height, dtype=torch.bool, device=query.device)[:, None], float("-inf"))
    energy = torch.cat([column, torch.einsum("bhwd,bhjd->bhwj", query, key)], -1)  # [B, H, W, H + W]
    weights = energy.softmax(-1)
    out = torch.einsum("bhwj,bjwc->bhwc", weights[..., :height], value)
    out = out + torch.einsum("bhwj,bhjc->bhwc", weights[..., height:], value)
    gradients = torch.autograd.grad(out, (query, key, value), grad.double())
    return dict(zip(NAMES, (out.detach(), energy.logsumexp(-1).detach(), *gradients), strict=True))


def assert_near(actual, wanted, tolerance):
    for name in NAMES:
        error = (actual[name].double() - wanted[name]).abs().max()
        assert error <= tolerance * wanted[name].abs().max().clamp(min=1e-3), f"{name}: {error}"


@pytest.mark.parametrize(("shape", "reduced", "channels"), SHAPES)
def test_output_and_gradients_are_the_formulas(shape, reduced, channels):
    arrays = inputs(shape, reduced, channels)
    assert_near(computed(*arrays), expected(*arrays), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_differ_from_the_formula_by_their_rounding(dtype):
    arrays = inputs((1, 9, 11), 20, 72, dtype)
    assert_near(computed(*arrays), expected(*arrays), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lines_of_many_tiles(dtype, monkeypatch):
    monkeypatch.setitem(kernels.LONGEST_TILE, dtype, 16)
    arrays = inputs((1, 33, 2), 8, 24, dtype)
    assert_near(computed(*arrays), expected(*arrays), TOLERANCE[dtype])


def test_results_are_contiguous_and_have_the_dtype_of_the_inputs_and_lse_is_float32():
    arrays = [x.transpose(1, 2) for x in inputs((1, 2, 3), 8, 24, torch.bfloat16)]
    results = computed(*arrays)
    assert all(x.is_contiguous() for x in results.values())
    assert {name: x.dtype for name, x in results.items()} == dict.fromkeys(NAMES, torch.bfloat16) | {"lse": torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_energies_stay_finite(dtype):
    results = computed(*inputs((1, 5, 6), 64, 24, dtype, scale=30.0))
    assert results["lse"].max() > 5000  # whose exp overflows float32
    assert all(x.isfinite().all() for x in results.values())


def test_large_energies_pick_the_value_of_the_largest():
    arrays = inputs((1, 5, 6), 64, 24, scale=30.0)
    wanted = expected(*arrays)["out"]
    torch.testing.assert_close(kernels.forward(*arrays[:3])[0].double(), wanted, rtol=0, atol=1e-2 * wanted.abs().max().item())


def test_strides_do_not_matter():
    arrays = inputs((2, 4, 5), 20, 24)
    channels_first = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in arrays]
    assert channels_first[0].stride(-1) == 4 * 5
    torch.testing.assert_close(computed(*channels_first), computed(*arrays), rtol=0, atol=1e-5)


def test_an_expanded_gradient_is_accepted():
    query, key, value, _ = inputs((1, 3, 4), 8, 24)
    ones = torch.ones(1, device=DEVICE).expand(1, 3, 4, 24)  # the gradient that sum() gives
    assert_near(computed(query, key, value, ones), expected(query, key, value, ones), TOLERANCE[torch.float32])


def test_equal_calls_give_equal_bits():
    arrays = inputs((1, 6, 5), 8, 24, torch.bfloat16)
    first, second = computed(*arrays), computed(*arrays)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_no_images_give_no_output():
    results = computed(*inputs((0, 3, 4), 8, 24))
    assert results["out"].shape == results["grad_value"].shape == (0, 3, 4, 24)


def test_a_pass_of_criss_cross_attention_is_the_kernels_output_plus_the_input():
    torch.manual_seed(0)
    module = CrissCrossAttention(24).to(DEVICE, torch.float64)
    torch.nn.init.ones_(module.gamma)
    x = torch.randn(1, 24, 5, 6, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        projections = [layer(x).permute(0, 2, 3, 1) for layer in (module.query, module.key, module.value)]
        out, _ = kernels.forward(*projections)
        torch.testing.assert_close(out.permute(0, 3, 1, 2) + x, module(x))


COMPILE = """
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction, create_function_from_signature
from ccnet import kernels

target = GPUTarget("cuda", 90, 32)
backend = triton.compiler.make_backend(target)
launches = []

def catch(self, *args, grid, warmup, **kwargs):
    kwargs |= {"debug": False, "instrumentation_mode": ""}
    bound, specialization, options = create_function_from_signature(self.signature, self.params, backend)(*args, **kwargs)
    options, signature, constants, attributes = self._pack_args(backend, kwargs, bound, specialization, options)
    launches.append((dtype, triton.compiler.ASTSource(self, signature, constants, attributes), options.__dict__))

def shared(launch):
    dtype, source, options = launch
    return dtype, triton.compile(source, target=target, options=options).metadata.shared

JITFunction.run = catch
for dtype in ("bfloat16", "float32"):
    query, key, value, grad = (torch.empty(1, 97, 97, width, dtype=getattr(torch, dtype)) for width in (64, 64, 512, 512))
    out, norms = kernels.forward(query, key, value)
    kernels.backward(grad, query, key, value, norms)
with ThreadPoolExecutor() as threads:
    for dtype, size in threads.map(shared, launches):
        print(dtype, size)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """dtype -> bytes of shared memory of each kernel of the published network, compiled for an H100.

    No GPU needed: the launches are intercepted and only compiled.
    """
    try:
        assert Path(triton.knobs.nvidia.ptxas.path).is_file()
    except RuntimeError as error:
        pytest.skip(f"no ptxas: {error}")
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    sizes = {"bfloat16": [], "float32": []}
    for dtype, size in map(str.split, done.stdout.splitlines()):
        sizes[dtype].append(int(size))
    return sizes


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_kernels_of_the_published_network_compile_for_an_h100(dtype, shared):
    """The interpreter accepts code that the compiler rejects, so the kernels are compiled too."""
    assert len(shared[dtype]) == {"bfloat16": 8, "float32": 12}[dtype]  # float32 lines of 97 are two tiles
    assert max(shared[dtype]) <= 227 * 1024  # the most bytes that a block may use
