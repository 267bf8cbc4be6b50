"""The criss-cross operator as one operator of torch: every position of a map attends to its own column and row."""

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ccnet import dispatch
from ccnet.shapes import Float


def criss_cross(
    query: Float[Tensor, "B H W D"], key: Float[Tensor, "B H W D"], value: Float[Tensor, "B H W C"]
) -> Float[Tensor, "B H W C"]:
    """Sum over i in Omega(u) of A(u, i) value(i), A the softmax of query(u) . key(i) over the H + W - 1 positions of Omega(u).

    Omega(u) are the positions in the column and the row of u, u itself once (CCNet, https://arxiv.org/abs/1811.11721, section
    3.2). Any strides; arrays with channels last in memory are read as they are. Softmax and sums are float32 or wider.

    Neither a mask nor joint energies [B, H, W, H + W] are built. On a GPU that can run them (`ccnet.dispatch`), `ccnet.kernels`
    compute the operator and keep two numbers of each position for the backward pass. Elsewhere batched matrix products compute
    it, and the attention is kept. Differentiable once; a second derivative is a RuntimeError.
    """
    if torch.compiler.is_exporting():
        return plain(query, key, value)
    out: Tensor = _operator(query, key, value)[0]
    return out


def residual(
    x: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "E C 1 1"],
    bias: Float[Tensor, " E"],
    out_weight: Float[Tensor, "C C 1 1"],
    out_bias: Float[Tensor, " C"],
) -> Float[Tensor, "B C H W"]:
    """x + the out convolution of `criss_cross` of x itself; query and key are the halves of one convolution of x (E = 2 D).

    The function works in channels last, the fastest layout for convolutions, and returns channels last. For the backward pass x
    is kept as it is, without a copy in a second layout. The backward pass holds three arrays as large as x at a time, including
    the kept x and the result.
    """
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias, out_weight, out_bias = (tensor.to(dtype) for tensor in (x, weight, bias, out_weight, out_bias))
    if torch.compiler.is_compiling():  # the compiler shares layouts and fuses by itself
        query, key = F.conv2d(x, weight, bias).permute(0, 2, 3, 1).chunk(2, dim=-1)
        return x + F.conv2d(criss_cross(query, key, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), out_weight, out_bias)
    out: Tensor = _Residual.apply(x, weight, bias, out_weight, out_bias)  # type: ignore[no-untyped-call]
    return out


class _Residual(torch.autograd.Function):
    """The autograd function of `residual`: its parts share one layout of x in each direction, and one sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> Tensor:
        pixels = _channels_last(x)
        projected = F.conv2d(pixels, weight, bias).permute(0, 2, 3, 1)  # [B, H, W, E]
        query, key = projected.chunk(2, dim=-1)
        seen, kept = _operator(query, key, pixels.permute(0, 2, 3, 1))
        ctx.save_for_backward(x, weight, out_weight, projected, seen, kept)
        return F.conv2d(seen.permute(0, 3, 1, 2), out_weight, out_bias).add_(pixels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _ResidualGradients.apply(grads[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class _ResidualGradients(torch.autograd.Function):
    """The gradients of `residual`. A function of its own, so that a second derivative finds `_refuse_second`."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, out_weight: Tensor, projected: Tensor, seen: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        # A copy of x or of the gradient in another layout gets no name, so that its memory is freed right after its use.
        of_seen, of_out_weight, of_out_bias = _convolution_backward(_channels_last(grad), seen, out_weight)
        query, key = projected.chunk(2, dim=-1)
        of_query, of_key, of_x = _gradients(of_seen, query, key, x.permute(0, 2, 3, 1), kept)
        of_projected = torch.cat([of_query, of_key], dim=-1).flatten(1, 2)  # [B, H W, E]
        of_weight = (x.flatten(2) @ of_projected).sum(0).mT  # [E, C]
        of_x.flatten(0, 2).addmm_(of_projected.flatten(0, 1), weight.flatten(1))
        of_x = _sum(of_x.permute(0, 3, 1, 2), grad, like=x, spare=of_seen)
        return of_x, of_weight.reshape(weight.shape), of_projected.sum((0, 1)), of_out_weight, of_out_bias

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        _refuse_second(ctx, *grads)


def _refuse_second(ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        "criss-cross attention is differentiable once, and something tries to differentiate it twice (create_graph=True, as for "
        "a penalty on gradients): ccnet.criss_cross.plain of query, key and value is differentiable any number of times"
    )


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [B, H, W, C], weight and bias of a 1x1 convolution, given the gradient [B, C, H, W] of its result.

    The bias's gradient is a separate sum: this takes an eighth of the time that it takes inside the call.
    """
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, x.permute(0, 3, 1, 2), weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return _packed(of_x.permute(0, 2, 3, 1)), of_weight, grad.sum((0, 2, 3))


def _sum(left: Tensor, right: Tensor, *, like: Tensor, spare: Tensor) -> Tensor:
    """left + right [B, C, H, W]; on a CPU in the layout of `like`.

    The result reuses the memory of left or of spare [B, H, W, C], because new memory takes as long as the sum. On a CPU the sum
    is computed row by row, which is twice as fast when the two layouts differ.
    """
    if left.device.type != "cpu":
        return left.add_(right)
    out = spare.view(like.shape) if like.is_contiguous() else left
    for of_out, of_left, of_right in zip(out.unbind(2), left.unbind(2), right.unbind(2), strict=True):
        torch.add(of_left, of_right, out=of_out)
    return out


def _channels_last(x: Tensor) -> Tensor:
    """x [B, C, H, W], with channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def plain(
    query: Float[Tensor, "B H W D"], key: Float[Tensor, "B H W D"], value: Float[Tensor, "B H W C"]
) -> Float[Tensor, "B H W C"]:
    """`criss_cross` by its definition: exported graphs use it, and the other implementations are tested against it."""
    column, row = attention(query, key)
    return torch.einsum("bhwj,bjwc->bhwc", column, value) + torch.einsum("bhwj,bhjc->bhwc", row, value)


def attention(
    query: Float[Tensor, "B H W D"], key: Float[Tensor, "B H W D"]
) -> tuple[Float[Tensor, "B H W H"], Float[Tensor, "B H W W"]]:
    """A as column[b, h, w, j] to position (j, w), 0 at j = h, and row[b, h, w, j] to (h, j). Together they sum to 1."""
    height = query.shape[1]
    column = without_self(torch.einsum("bhwd,bjwd->bhwj", query, key), axis=1)
    row = torch.einsum("bhwd,bhjd->bhwj", query, key)
    weights = torch.cat([column, row], dim=-1).softmax(dim=-1)  # [B, H, W, H + W]
    return weights[..., :height], weights[..., height:]


def without_self(energy: Tensor, axis: int) -> Tensor:
    """The energy [B, ..., n at `axis`, ..., n] between positions of one line, with -inf where a position meets itself."""
    shape = [1] * energy.ndim
    shape[axis] = shape[-1] = energy.shape[-1]
    own = torch.eye(energy.shape[-1], dtype=torch.bool, device=energy.device).view(shape)
    return energy.masked_fill(own, float("-inf"))


@torch.library.custom_op("ccnet::criss_cross", mutates_args=())
def _operator(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and what backward needs besides the inputs: the attention (see `_laid_out`) or the kernels' two numbers."""
    if kernels := dispatch.kernels(query):
        out, norms = kernels.forward(query, key, value)
        return out, norms
    batch, height, width, _ = query.shape
    weights = query.new_empty(batch * height * width * (height + width), dtype=torch.promote_types(query.dtype, torch.float32))
    column, row = _laid_out(weights, query.shape)
    query, key = query.to(weights.dtype), key.to(weights.dtype)
    torch.bmm(_columns(query), _columns(key).mT, out=column.flatten(0, 1))
    torch.bmm(query.flatten(0, 1), key.flatten(0, 1).mT, out=row.flatten(0, 1))
    column.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))  # the position itself counts in its row
    top = torch.maximum(row.amax(-1), column.amax(-1).transpose(1, 2))  # [B, H, W]
    row.sub_(top.unsqueeze(-1))
    column.sub_(top.transpose(1, 2).unsqueeze(-1))
    weights.exp_()
    total = row.sum(-1).add_(column.sum(-1).transpose(1, 2))  # [B, H, W]
    row.div_(total.unsqueeze(-1))
    column.div_(total.transpose(1, 2).unsqueeze(-1))
    value = _packed(value)
    return _along_lines(column.to(value.dtype), row.to(value.dtype), value), weights


@torch.library.custom_op("ccnet::criss_cross_backward", mutates_args=())
def _gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value. P is the attention, dP = grad . value, d = sum over i of P dP: dE = P (dP - d)."""
    grad, value = _packed(grad), _packed(value)
    if kernels := dispatch.kernels(query):
        grad_query, grad_key, grad_value = kernels.backward(grad, query, key, value, kept)
        return grad_query, grad_key, grad_value
    column, row = _laid_out(kept, query.shape)
    of_row = torch.matmul(grad, value.mT).to(row.dtype)  # [B, H, W, W]
    of_column = torch.stack([torch.bmm(g.transpose(0, 1), v.transpose(0, 1).mT) for g, v in zip(grad, value, strict=True)])
    of_column = of_column.to(row.dtype)  # [B, W, H, H]
    mean = (row * of_row).sum(-1).add_((column * of_column).sum(-1).transpose(1, 2))  # [B, H, W]
    of_row.sub_(mean.unsqueeze(-1)).mul_(row)
    of_column.sub_(mean.transpose(1, 2).unsqueeze(-1)).mul_(column)
    grad_query = _along_lines(of_column, of_row, key.to(row.dtype))
    grad_key = _along_lines(of_column.mT, of_row.mT, query.to(row.dtype))
    del value  # a copy of value, if one was made, is freed before the last gradient is allocated
    grad_value = _along_lines(column.mT.to(grad.dtype), row.mT.to(grad.dtype), grad)
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value


def _laid_out(weights: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Views of one array: the attention along columns [B, W, H, H] and along rows [B, H, W, W], each a batch of matrices."""
    batch, height, width, _ = shape
    num_columns = batch * height * width * height
    column, row = weights[:num_columns], weights[num_columns:]
    return column.view(batch, width, height, height), row.view(batch, height, width, width)


def _columns(x: Tensor) -> Tensor:
    """x [B, H, W, D] as one matrix per column: [B W, H, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def _packed(x: Tensor) -> Tensor:
    """The array [B, H, W, C], contiguous. On a CPU this takes a third of the time of `contiguous`."""
    return _channels_last(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _along_lines(column: Tensor, row: Tensor, value: Tensor) -> Tensor:
    """Weights [B, W, H, H] times the values of each column plus weights [B, H, W, W] times those of each row: [B, H, W, C]."""
    out = torch.matmul(row, value)
    for sums, weights, values in zip(out, column, value, strict=True):
        sums.transpose(0, 1).baddbmm_(weights, values.transpose(0, 1))  # in place: columns are not contiguous
    return out


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = query.shape
    shape = (batch, height, width, 2) if dispatch.kernels(query) else (batch * height * width * (height + width),)
    return value.new_empty(value.shape), query.new_empty(shape, dtype=torch.promote_types(query.dtype, torch.float32))


@_gradients.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = _gradients(grad, *ctx.saved_tensors)
    return gradients


_operator.register_autograd(_backward, setup_context=_keep)
_gradients.register_autograd(_refuse_second)


@register_flop_formula(torch.ops.ccnet.criss_cross)
def _flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], **_: object) -> int:
    batch, height, width, channels = value
    return 2 * batch * height * width * (height + width) * (query[-1] + channels)


@register_flop_formula(torch.ops.ccnet.criss_cross_backward)
def _backward_flops(grad: tuple[int, ...], query: tuple[int, ...], *rest: object, **_: object) -> int:
    batch, height, width, channels = grad
    return 2 * batch * height * width * (height + width) * (2 * query[-1] + 2 * channels)  # recomputation is not counted
