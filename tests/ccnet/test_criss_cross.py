"""The operator against its definition, its registration with torch, and the memory that it keeps for the backward pass."""

import pytest
import torch
from torch import Tensor, nn

from ccnet import CrissCrossAttention, criss_cross

SIZES = [(1, 1, 1), (1, 1, 9), (1, 8, 1), (2, 5, 7), (3, 4, 4)]


def drawn(size: tuple[int, int, int], dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value of 3, 3 and 5 channels."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(*size, channels, generator=generator, dtype=torch.float64) for channels in (3, 3, 5)]
    query, key, value = (scale * draw for draw in draws)
    return query.to(dtype).requires_grad_(), key.to(dtype).requires_grad_(), value.to(dtype).requires_grad_()


def with_gradients(function, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("size", SIZES)
def test_has_the_values_and_gradients_of_its_definition(size, within):
    inputs = drawn(size)
    found, expected = (with_gradients(function, inputs) for function in (criss_cross.criss_cross, criss_cross.plain))
    for ours, theirs in zip(found, expected, strict=True):
        within(ours, theirs, 1e-12)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(criss_cross.criss_cross, drawn((2, 3, 4)))


@pytest.mark.parametrize("through", ["module", "operator"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_second_derivative_is_refused_in_one_sentence(through, backward):
    """Also where torch itself would find no path and return None, or zeros."""
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    attention = CrissCrossAttention(8).double()
    nn.init.constant_(attention.gamma, 0.7)
    pixels = x.permute(0, 2, 3, 1)
    out = attention(x) if through == "module" else criss_cross.criss_cross(pixels, pixels, pixels)
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"differentiable once, .* differentiate it twice .*: ccnet.criss_cross.plain of query"
    ):
        gradient.sum().backward() if backward else torch.autograd.grad(gradient.sum(), x)


def test_the_definition_has_second_derivatives():
    assert torch.autograd.gradgradcheck(criss_cross.plain, drawn((1, 2, 3)))


def test_large_energies_neither_overflow_nor_vanish(within):
    inputs = drawn((2, 5, 7), scale=30.0)
    found, expected = (with_gradients(function, inputs) for function in (criss_cross.criss_cross, criss_cross.plain))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.isfinite().all()
        within(ours, theirs, 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_other_dtypes_stay_close_and_keep_their_dtype(dtype, tolerance, within):
    inputs = drawn((2, 6, 7), dtype)
    wide = tuple(each.detach().double().requires_grad_() for each in inputs)
    found, expected = with_gradients(criss_cross.criss_cross, inputs), with_gradients(criss_cross.plain, wide)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        within(ours, theirs, tolerance)


def test_strides_do_not_matter(within):
    inputs = drawn((2, 5, 7))
    strided = tuple(x.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_() for x in inputs)
    found, expected = with_gradients(criss_cross.criss_cross, strided), with_gradients(criss_cross.criss_cross, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        within(ours, theirs, 1e-13)


@pytest.mark.parametrize("size", [(2, 5, 7), (1, 1, 3)])
def test_is_registered_as_torch_demands(size):
    """Schema, fake kernels, autograd registration and tracing with symbolic sizes, by torch's own check."""
    torch.library.opcheck(torch.ops.ccnet.criss_cross.default, drawn(size))
    inputs = tuple(each.detach() for each in drawn(size))
    out, norms = torch.ops.ccnet.criss_cross(*inputs)
    torch.library.opcheck(torch.ops.ccnet.criss_cross_backward.default, (torch.ones_like(out), *inputs, norms))


def kept_mib(batch: int, height: int, width: int, recurrence: int) -> float:
    """Distinct memory that the passes keep for the backward pass, in MiB, besides parameters and input."""
    module, x = CrissCrossAttention(512), torch.randn(batch, 512, height, width, requires_grad=True)
    given = {tensor.untyped_storage().data_ptr() for tensor in (x, *module.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = x
        for _ in range(recurrence):
            y = module(y)
    return sum(kept.values()) / 2**20


# The published module keeps 78, 175, 136 and 304 MiB, counted in the same way.
@pytest.mark.parametrize(
    ("size", "recurrence", "published"),
    [((1, 97, 97), 1, 78), ((1, 97, 97), 2, 175), ((2, 64, 128), 1, 136), ((2, 64, 128), 2, 304)],
)
def test_keeps_at_most_half_of_what_the_published_module_keeps(size, recurrence, published):
    assert kept_mib(*size, recurrence) <= published / 2
