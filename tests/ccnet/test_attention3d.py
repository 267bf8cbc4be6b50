"""Three-dimensional criss-cross attention against the paper's definition, the published counting and its own laws."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from ccnet.attention import CrissCrossAttention, CrissCrossAttention3d

CASES = ["c16_3x4x1", "c16_3x4x5", "c16_4x1x3", "c16_4x4x4"]


def random_attention(channels: int, num_self: int = 1) -> CrissCrossAttention3d:
    torch.manual_seed(0)
    module = CrissCrossAttention3d(channels, num_self=num_self).double()
    torch.nn.init.constant_(module.gamma, 0.7)
    return module


@pytest.mark.parametrize(
    ("dtype", "tolerance", "parameter_tolerance"), [(torch.float64, 1e-9, 1e-9), (torch.float32, 2e-5, 2e-4)]
)
@pytest.mark.parametrize("num_self", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_numbers(case, num_self, dtype, tolerance, parameter_tolerance, golden, parameters, within):
    """The paper's definition for num_self 1, the published code with its scrambling repaired for 2."""
    z = golden(f"cca3d_{case}")
    module = CrissCrossAttention3d(z["x"].shape[1], num_self=num_self)
    module.load_state_dict({ours: z[theirs] for theirs, ours in parameters.items()})
    module.to(dtype)
    x = z["x"].to(dtype).requires_grad_()

    y = module(x)
    (y * z["r"].to(dtype)).sum().backward()

    within(y, z[f"y_self{num_self}"], tolerance)
    within(x.grad, z[f"gx_self{num_self}"], tolerance)
    for theirs, ours in parameters.items():
        within(module.get_parameter(ours).grad, z[f"g_{theirs}_self{num_self}"], parameter_tolerance)


def test_equals_the_definition_voxel_by_voxel(within):
    module, x = random_attention(8), torch.randn(1, 8, 2, 3, 4, dtype=torch.float64)
    query, key, value = module.query(x)[0], module.key(x)[0], module.value(x)[0]
    expected = torch.empty_like(x)
    voxels = [(t, h, w) for t in range(2) for h in range(3) for w in range(4)]
    for u in voxels:
        seen = [i for i in voxels if sum(a != b for a, b in zip(u, i, strict=True)) <= 1]
        assert len(seen) == 2 + 3 + 4 - 2
        energy = torch.stack([query[:, *u] @ key[:, *i] for i in seen])
        context = sum(a * value[:, *i] for a, i in zip(energy.softmax(0), seen, strict=True))
        expected[0, :, *u] = module.gamma * context + x[0, :, *u]
    within(module(x), expected, 1e-12)


def test_a_fresh_module_is_the_identity():
    x = torch.randn(2, 16, 3, 4, 5)
    assert torch.equal(CrissCrossAttention3d(16)(x), x)


@pytest.mark.parametrize("num_self", [1, 2])
def test_attention_of_a_voxel_sums_to_one_and_reaches_itself_along_num_self_axes(num_self):
    along = random_attention(16, num_self).attention(torch.randn(2, 16, 3, 4, 5, dtype=torch.float64))
    torch.testing.assert_close(sum(one.sum(-1) for one in along), torch.ones(2, 3, 4, 5, dtype=torch.float64))
    own = [one.diagonal(dim1=axis, dim2=-1) > 0 for axis, one in enumerate(along, start=1)]
    assert [bool(one.any()) for one in own] == [False, num_self == 2, True]
    assert all(one.all() for one in own[3 - num_self :])


@pytest.mark.parametrize("num_self", [1, 2])
@pytest.mark.parametrize("axes", list(permutations((2, 3, 4))))
def test_permuted_axes_give_permuted_output(axes, num_self, within):
    module, x = random_attention(16, num_self), torch.randn(2, 16, 3, 4, 5, dtype=torch.float64)
    within(module(x.permute(0, 1, *axes)), module(x).permute(0, 1, *axes), 1e-12)


def reached(recurrence: int) -> Tensor:
    """Which voxels of a 3 x 4 x 5 volume move the output at (1, 2, 3)."""
    module, x = random_attention(16), torch.randn(1, 16, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = x
    for _ in range(recurrence):
        y = module(y)
    y[0, :, 1, 2, 3].sum().backward()
    return x.grad[0].abs().sum(0) > 0


@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_r_passes_reach_exactly_the_voxels_that_differ_in_at_most_r_coordinates(recurrence):
    t, h, w = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(5), indexing="ij")
    num_different = (t != 1).int() + (h != 2).int() + (w != 3).int()
    assert torch.equal(reached(recurrence), num_different <= recurrence)


@pytest.mark.parametrize("size", [(1, 1, 5), (1, 5, 1), (5, 1, 1), (1, 1, 1)])
def test_flat_volumes_have_finite_gradients(size):
    module, x = random_attention(8), torch.randn(1, 8, *size, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_a_single_frame_is_two_dimensional_attention(within):
    volume, x = random_attention(16), torch.randn(2, 16, 1, 4, 5, dtype=torch.float64)
    plane = CrissCrossAttention(16).double()
    plane.load_state_dict({name: v[..., 0] if v.ndim == 5 else v for name, v in volume.state_dict().items()})
    within(volume(x)[:, :, 0], plane(x[:, :, 0]), 1e-12)


def test_channels_last_and_strided_volumes_give_the_same(within):
    module, x = random_attention(16), torch.randn(2, 16, 3, 4, 5, dtype=torch.float64)
    within(module(x.contiguous(memory_format=torch.channels_last_3d)), module(x), 1e-12)
    within(module(x[..., ::2]), module(x[..., ::2].contiguous()), 1e-12)


def test_every_mask_is_built_where_the_input_is():
    module = CrissCrossAttention3d(16).to("meta")
    assert module(torch.empty(1, 16, 3, 4, 5, device="meta")).device.type == "meta"


def test_counting_the_voxel_three_times_is_an_error():
    with pytest.raises(ValueError, match=r"num_self = 3: must be 1 \(the paper\) or 2"):
        CrissCrossAttention3d(16, num_self=3)


def test_too_few_channels_are_an_error():
    with pytest.raises(ValueError, match="channels = 4: must be at least reduction = 8"):
        CrissCrossAttention3d(4)
