"""The criss-cross operator as one operator of torch: every position of a map looks along its own column and row."""

import importlib.util
from functools import cache
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def criss_cross(
    query: Float[Tensor, "B H W D"], key: Float[Tensor, "B H W D"], value: Float[Tensor, "B H W C"]
) -> Float[Tensor, "B H W C"]:
    """Sum over i in Omega(u) of A(u, i) value(i), A the softmax of query(u) . key(i) over the H + W - 1 positions of Omega(u).

    Omega(u) are the positions in the column and the row of u, itself once (CCNet, https://arxiv.org/abs/1811.11721, section
    3.2). Any strides; channels last in memory are read as they lie. Softmax and sums are float32 or wider.

    Kept for the backward pass are the three inputs, the result and two numbers for each position; the energies are computed
    again. Neither a mask nor the joint energies [B, H, W, H + W] are ever laid out. On a GPU that has Triton `ccnet.kernels`
    computes it, elsewhere batched products of matrices do. Differentiable once.
    """
    if torch.compiler.is_exporting():
        return plain(query, key, value)
    out: Tensor = _operator(query, key, value)[0]
    return out


def plain(
    query: Float[Tensor, "B H W D"], key: Float[Tensor, "B H W D"], value: Float[Tensor, "B H W C"]
) -> Float[Tensor, "B H W C"]:
    """`criss_cross` by its definition: what an exported graph holds, and what the others are tested against."""
    column, row = attention(query, key)
    return torch.einsum("bhwj,bjwc->bhwc", column, value) + torch.einsum("bhwj,bhjc->bhwc", row, value)


def attention(
    query: Float[Tensor, "B H W D"], key: Float[Tensor, "B H W D"]
) -> tuple[Float[Tensor, "B H W H"], Float[Tensor, "B H W W"]]:
    """A: column[b, h, w, j] to position (j, w), 0 at j = h, and row[b, h, w, j] to (h, j); together they sum to 1."""
    height = query.shape[1]
    column = torch.einsum("bhwd,bjwd->bhwj", query, key)
    own = torch.eye(height, dtype=torch.bool, device=query.device).view(height, 1, height)
    row = torch.einsum("bhwd,bhjd->bhwj", query, key)
    weights = torch.cat([column.masked_fill(own, float("-inf")), row], dim=-1).softmax(dim=-1)  # [B, H, W, H + W]
    return weights[..., :height], weights[..., height:]


@torch.library.custom_op("ccnet::criss_cross", mutates_args=())
def _operator(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The result and, of each position's energies e, [max of e, sum of exp(e - max)]: [B, H, W, 2], float32 or wider.

    Two numbers, because their sum as a logarithm would be rounded by the size of the energies, which nothing bounds.
    """
    if kernels := _kernels(query.device.type):
        out, norms = kernels.forward(query, key, value)
        return out, norms
    column, row = _energies(query, key)
    top = torch.maximum(row.amax(-1), column.amax(-1).transpose(1, 2))  # [B, H, W]
    total = _exponentials(row, top).sum(-1).add_(_exponentials(column, top.transpose(1, 2)).sum(-1).transpose(1, 2))
    row.div_(total.unsqueeze(-1))
    column.div_(total.transpose(1, 2).unsqueeze(-1))
    value = value.contiguous()
    return _along_lines(column.to(value.dtype), row.to(value.dtype), value), torch.stack([top, total], dim=-1)


@torch.library.custom_op("ccnet::criss_cross_backward", mutates_args=())
def _gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of query, key and value. With P the attention, dP = grad . value and d = sum over i of P dP: dE = P (dP - d)."""
    if kernels := _kernels(query.device.type):
        grad_query, grad_key, grad_value = kernels.backward(grad, query, key, value, out, norms)
        return grad_query, grad_key, grad_value
    grad, value = grad.contiguous(), value.contiguous()
    top, total = norms.unbind(-1)
    column, row = _energies(query, key)
    _exponentials(row, top).div_(total.unsqueeze(-1))
    _exponentials(column, top.transpose(1, 2)).div_(total.transpose(1, 2).unsqueeze(-1))
    grad_value = _along_lines(column.mT.to(value.dtype), row.mT.to(value.dtype), grad)
    grad_row = torch.matmul(grad, value.mT).to(row.dtype)  # [B, H, W, W]
    grad_column = torch.stack([torch.bmm(g.transpose(0, 1), v.transpose(0, 1).mT) for g, v in zip(grad, value, strict=True)])
    grad_column = grad_column.to(row.dtype)  # [B, W, H, H]
    mean = (row * grad_row).sum(-1).add_((column * grad_column).sum(-1).transpose(1, 2))  # [B, H, W]
    grad_row.sub_(mean.unsqueeze(-1)).mul_(row)
    grad_column.sub_(mean.transpose(1, 2).unsqueeze(-1)).mul_(column)
    of_query = _along_lines(grad_column, grad_row, key.to(row.dtype))
    of_key = _along_lines(grad_column.mT, grad_row.mT, query.to(row.dtype))
    return of_query.to(query.dtype), of_key.to(key.dtype), grad_value


def _energies(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """query . key along columns [B, W, H, H], -inf at a position itself, and along rows [B, H, W, W]; float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    column = torch.matmul(query.transpose(1, 2), key.transpose(1, 2).mT)
    column.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
    return column, torch.matmul(query, key.mT)


def _exponentials(energies: Tensor, top: Tensor) -> Tensor:
    """exp(e - top) in place; [B, m, n, k] and [B, m, n]."""
    return energies.sub_(top.unsqueeze(-1)).exp_()


def _along_lines(column: Tensor, row: Tensor, value: Tensor) -> Tensor:
    """Columns [B, W, H, H] times the values of their column plus rows [B, H, W, W] times those of their row: [B, H, W, C]."""
    out = torch.matmul(row, value)
    for sums, weights, values in zip(out, column, value, strict=True):
        sums.transpose(0, 1).baddbmm_(weights, values.transpose(0, 1))  # in place: one image's columns are no batch in memory
    return out


@cache
def _kernels(device: str) -> ModuleType | None:
    """The kernels for GPUs, where torch has one and Triton is installed."""
    if device != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from ccnet import kernels

    return kernels


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    return value.new_empty(value.shape), query.new_empty((*query.shape[:-1], 2), dtype=wide)


@_gradients.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = _gradients(grad, *ctx.saved_tensors)
    return gradients


_operator.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.ccnet.criss_cross)
def _flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], **_: object) -> int:
    batch, height, width, channels = value
    return 2 * batch * height * width * (height + width) * (query[-1] + channels)


@register_flop_formula(torch.ops.ccnet.criss_cross_backward)
def _backward_flops(grad: tuple[int, ...], query: tuple[int, ...], *rest: object, **_: object) -> int:
    batch, height, width, channels = grad
    return 2 * batch * height * width * (height + width) * (3 * query[-1] + 2 * channels)
