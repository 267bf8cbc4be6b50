"""The Triton kernels against the plain formula in float64: compiled with CUDA, in Triton's interpreter without it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccnet import CrissCrossAttention, dispatch
from tests.ccnet.device import DEVICE
from tests.support.compiled_kernels import SHARED_MEMORY

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


TRAINED = [(2, 97, 97), (1, 65, 129), (1, 129, 257)]  # crops of 769 x 769 and 512 x 1024, whole images of Cityscapes
MOST_SPILLED = 1024


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: Triton's interpreter takes hours for maps of this size")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", TRAINED)
def test_the_maps_that_train_have_the_formulas_output_and_gradients(shape, dtype):
    arrays = inputs(shape, 64, 512, dtype, scale=0.5)
    assert_near(computed(*arrays), expected(*arrays), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(1, 2, 65), (1, 1, 129)])
def test_lines_of_the_maps_that_train(shape):
    """65 positions are one tile of bfloat16 half filled, 129 are one tile and one position."""
    arrays = inputs(shape, 8, 16, torch.bfloat16)
    assert_near(computed(*arrays), expected(*arrays), TOLERANCE[torch.bfloat16])


@pytest.fixture
def moved(monkeypatch):
    """moved(function): bytes that the kernels of a call read and write, counted by Triton's interpreter."""
    if DEVICE == "cuda":
        pytest.skip("counted in Triton's interpreter")
    from triton.runtime.interpreter import InterpreterBuilder

    counted = []
    for name in ("create_masked_load", "create_masked_store"):
        made = getattr(InterpreterBuilder, name)

        def count(self, pointers, *rest, made=made, name=name):
            mask = rest[0 if name == "create_masked_load" else 1]
            counted.append(int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8)
            return made(self, pointers, *rest)

        monkeypatch.setattr(InterpreterBuilder, name, count)

    def of(function, *arguments):
        counted.clear()
        return function(*arguments), sum(counted)

    return of


def test_lines_of_one_tile_move_less_than_three_times_the_bytes_of_their_arrays(moved):
    """Least: forward reads query, key and value and writes out; backward reads these and grad, and writes three gradients.

    Without a program's second read of query and key, which its cache holds, both together are 2.79.
    """
    query, key, value, grad = inputs((1, 2, 3), 64, 512, torch.bfloat16)
    (_, norms), forward = moved(kernels.forward, query, key, value)
    _, backward = moved(kernels.backward, grad, query, key, value, norms)
    position = 2 * 2 * 3  # bytes of a channel of all positions
    assert forward / (position * (2 * 64 + 2 * 512)) == pytest.approx(2.45, abs=0.01)
    assert (forward + backward) / (position * (3 * (2 * 64 + 512) + 2 * 512)) == pytest.approx(2.88, abs=0.01)


def compiled(capability, *options):
    """The figures that tests/support/compiled_kernels.py prints, by column. It needs no GPU."""
    try:
        assert Path(triton.knobs.nvidia.ptxas.path).is_file()
    except RuntimeError as error:
        pytest.skip(f"no ptxas: {error}")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.support.compiled_kernels", str(capability), *options]
    environment = os.environ | {"PYTHONPATH": str(root), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    heading, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in done.stdout.splitlines())
    return [dict(zip(heading, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("capability", "options", "launches"),
    [
        (90, ("--dtype", "bfloat16"), 17),  # 5 for lines of one tile, 12 for longer ones
        (90, ("--dtype", "float32"), 12),
        *((each, ("--dtype", "float16", "--size", "97", "97"), 5) for each in (80, 86, 89, 120)),
        *((each, ("--dtype", "float32", "--only", "line_slope"), 4) for each in (80, 86, 89, 120)),
    ],
)
def test_the_kernels_compile_and_fit(capability, options, launches):
    """The interpreter accepts code that the compiler rejects, so the kernels are compiled too."""
    found = compiled(capability, *options)
    assert len(found) == launches
    shared = max(int(each["shared"]) for each in found)
    assert shared <= SHARED_MEMORY[capability] * 1024
    assert shared <= dispatch.SHARED_MEMORY, "the gate must ask for what the kernels need"
    assert max(int(each["spilled"]) for each in found) <= MOST_SPILLED, "bytes of a thread's registers in memory"


def test_a_t4_has_too_little_for_the_kernels():
    """Without tensor cores in Triton a thread keeps kilobytes of its registers in memory: the gate refuses it."""
    found = compiled(75, "--dtype", "float16", "--only", "line_forward", "--size", "97", "97")
    assert min(int(each["spilled"]) for each in found) > 4096
