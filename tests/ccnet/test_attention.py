"""Criss-cross attention against the published module's numbers, the naive definition and its own laws."""

import pytest
import torch
from torch import Tensor

from ccnet import CrissCrossAttention

CASES = ["c16_1x8", "c16_4x6_gamma0", "c16_5x7", "c16_6x6_large", "c16_8x1", "c64_13x13", "c64_9x6", "c8_1x1"]


def random_attention(channels: int, gamma: float = 0.7, seed: int = 0) -> CrissCrossAttention:
    torch.manual_seed(seed)
    module = CrissCrossAttention(channels).double()
    torch.nn.init.constant_(module.gamma, gamma)
    return module


@pytest.mark.parametrize(
    ("dtype", "tolerance", "parameter_tolerance"), [(torch.float64, 1e-9, 1e-9), (torch.float32, 2e-5, 2e-4)]
)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_published_module(case, dtype, tolerance, parameter_tolerance, backend, golden, parameters, within):
    z = {name: array.to(backend) for name, array in golden(f"cca2d_{case}").items()}
    module = CrissCrossAttention(z["x"].shape[1]).to(backend)
    module.load_state_dict({ours: z[theirs] for theirs, ours in parameters.items()})
    module.to(dtype)
    x = z["x"].to(dtype).requires_grad_()

    y = module(x)
    (y * z["r"].to(dtype)).sum().backward()
    column, row = module.attention(x)

    within(y, z["y"], tolerance)
    within(column, z["attn_col"], tolerance)
    within(row, z["attn_row"], tolerance)
    within(x.grad, z["gx"], tolerance)
    for theirs, ours in parameters.items():
        within(module.get_parameter(ours).grad, z[f"g_{theirs}"], parameter_tolerance)


def test_equals_the_definition_pixel_by_pixel(within):
    module, x = random_attention(8), torch.randn(1, 8, 3, 4, dtype=torch.float64)
    query, key, value = module.query(x)[0], module.key(x)[0], module.value(x)[0]
    expected = torch.empty_like(x)
    for h in range(3):
        for w in range(4):
            seen = [(i, w) for i in range(3) if i != h] + [(h, j) for j in range(4)]
            energy = torch.stack([query[:, h, w] @ key[:, i, j] for i, j in seen])
            context = sum(a * value[:, i, j] for a, (i, j) in zip(energy.softmax(0), seen, strict=True))
            expected[0, :, h, w] = module.gamma * context + x[0, :, h, w]
    within(module(x), expected, 1e-12)


def test_a_fresh_module_is_the_identity():
    x = torch.randn(2, 16, 5, 6)
    assert torch.equal(CrissCrossAttention(16)(x), x)


def test_attention_of_a_pixel_sums_to_one_and_counts_the_pixel_once():
    column, row = random_attention(16).attention(torch.randn(2, 16, 5, 6, dtype=torch.float64))
    torch.testing.assert_close(column.sum(-1) + row.sum(-1), torch.ones(2, 5, 6, dtype=torch.float64))
    assert torch.equal(column.diagonal(dim1=1, dim2=3), torch.zeros(2, 6, 5, dtype=torch.float64))


def test_transposed_input_gives_transposed_output():
    module, x = random_attention(16), torch.randn(2, 16, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(module(x.mT), module(x).mT, rtol=0, atol=1e-13)


def reached(recurrence: int) -> Tensor:
    """Which pixels of a 4 x 5 map move the output at (1, 2)."""
    module, x = random_attention(16), torch.randn(1, 16, 4, 5, dtype=torch.float64, requires_grad=True)
    y = x
    for _ in range(recurrence):
        y = module(y)
    y[0, :, 1, 2].sum().backward()
    return x.grad[0].abs().sum(0) > 0


def test_one_pass_reaches_exactly_the_row_and_the_column():
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[1, :] = expected[:, 2] = True
    assert torch.equal(reached(recurrence=1), expected)


def test_two_passes_reach_every_pixel():
    assert reached(recurrence=2).all()


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1)])
def test_flat_maps_have_finite_gradients(size):
    module, x = random_attention(8), torch.randn(1, 8, *size, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("size", [(5, 7), (1, 7), (5, 1)])
def test_channels_last_and_strided_maps_give_the_same(size, within):
    module, x = random_attention(16), torch.randn(2, 16, *size, dtype=torch.float64)
    within(module(x.contiguous(memory_format=torch.channels_last)), module(x), 1e-12)
    within(module(x[..., ::2]), module(x[..., ::2].contiguous()), 1e-12)


def test_a_single_pixel_gets_gamma_times_its_value_added(within):
    module, x = random_attention(16), torch.randn(2, 16, 1, 1, dtype=torch.float64)
    within(module(x), 0.7 * module.value(x) + x, 1e-15)


def test_the_published_width_has_328321_parameters():
    with torch.device("meta"):
        module = CrissCrossAttention(512)
    assert sum(parameter.numel() for parameter in module.parameters()) == 328_321


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_keeps_its_dtype_and_stays_close(dtype, tolerance, within):
    module, x = random_attention(16), torch.randn(2, 16, 6, 7, dtype=torch.float64)
    expected = module(x)
    x = x.to(dtype).requires_grad_()
    y = module.to(dtype)(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert x.grad.isfinite().all()
    within(y, expected, tolerance)


def test_too_few_channels_are_an_error():
    with pytest.raises(ValueError, match="channels = 4: must be at least reduction = 8"):
        CrissCrossAttention(4)
