"""Differentiable functions of batch normalization fused with its neighbors.

`Activation` is the normalization, with an addition and a ReLU, as a float tensor whose memory is filled later or never:
`quant.pending` decides. `Product` goes on to the integer convolution of the quantized activation; it saves the input of
the normalization instead of the activation, and computes the activation again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lbitcls.quant.kernels import norm
from lbitcls.quant.kernels.integer_operators import Geometry
from lbitcls.quant.kernels.integer_step import multiply
from lbitcls.quant.kernels.integer_weights import WeightIntegers
from lbitcls.quant.kernels.norm import Clip, Grid
from lbitcls.quant.kernels.once import differentiable_once
from lbitcls.quant.kernels.product_gradients import ProductGradients


@dataclass(frozen=True)
class Promise:
    """Recipe for an activation: clip(z · a + b [+ shortcut], 0, cap).

    Attributes:
        z: Input of the normalization, with its history.
        gamma: Factors of the normalization.
        beta: Offsets of the normalization.
        shortcut: Tensor to add, with its history, or None.
        z_data: Values of `z`, without history.
        shortcut_data: Values to add, without history.
        stats: Result of `norm.statistics`.
        clip: Activation function.
    """

    z: Tensor
    gamma: Tensor
    beta: Tensor
    shortcut: Tensor | None
    z_data: Tensor
    shortcut_data: Tensor | None
    stats: Tensor
    clip: Clip

    @property
    def sources(self) -> tuple[Tensor | None, ...]:
        """Tensors that have gradients."""
        return self.z, self.gamma, self.beta, self.shortcut

    def fill(self, out: Tensor) -> None:
        """Compute the activation."""
        norm.activate(self.z_data, self.shortcut_data, out, self.stats, self.clip)


class Activation(torch.autograd.Function):
    """Activation that a promise describes, in memory that is not filled yet.

    Arguments: the promise's four sources, the promise, a function that wraps the new memory in a tensor, and a tensor
    to use instead of new memory, whose history is replaced, or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        shortcut: Tensor | None,
        promise: Promise,
        wrap: Callable[[Tensor], Any],
        target: Any,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        y = wrap(torch.empty_like(promise.z_data)) if target is None else target
        if target is not None:
            ctx.mark_dirty(target)
        ctx.save_for_backward(promise.z_data, promise.stats)
        ctx.clip = promise.clip
        # Where z does not tell what was clipped, the result does. It cannot be saved yet: its memory is not filled.
        ctx.out = (y.data_alias, y.filled) if shortcut is not None and promise.clip.cap is not None else None
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        z, stats = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        sums = norm.backward_sums(z, _unchanged(*ctx.out) if ctx.out else None, None, grad, stats, ctx.clip)
        ours = ctx.clip.cap is not None and not ctx.needs_input_grad[3]
        grad_z = norm.backward_input(z, sums.grad, sums.grad if ours else torch.empty_like(z), stats, sums.rows)
        return grad_z, sums.rows[0], sums.rows[1], sums.grad if ctx.needs_input_grad[3] else None, None, None, None


def _unchanged(out: Tensor, filled: list[int]) -> Tensor:
    if filled != [out._version]:
        raise RuntimeError(
            f"An activation of shape {tuple(out.shape)} that the gradients need has been modified by an in-place "
            "operation. Use the operation that returns a new tensor."
        )
    return out


class Product(torch.autograd.Function):
    """Integer convolution of an activation that a promise describes, quantized.

    Arguments: the promise's four sources, the promise, the source of the convolution's quantized weight, the bias, the
    weight, the input's grid, the convolution's arguments, the type in which the products of the backward pass run, a
    function that wraps the result, the tensor that promised the activation (it is filled, and its gradient comes here)
    or None, and the parameters of the input's grid.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        shortcut: Tensor | None,
        promise: Promise,
        source: Tensor,
        bias: Tensor | None,
        weight: WeightIntegers,
        grid: Grid,
        geometry: Geometry,
        gradients: str,
        wrap: Callable[[Tensor], Any],
        target: Any,
        *parameters: Tensor,
    ) -> Any:
        ctx.set_materialize_grads(False)
        out = None if target is None else target.data_alias
        data = (promise.z_data, promise.shortcut_data, out)
        codes, undefined = norm.activate_codes(*data, promise.stats, promise.clip, grid)
        y = multiply(codes, weight, grid.parameters[0], grid.low, bias, geometry, undefined)
        saved = (promise.z_data, promise.stats, out, weight.integers, weight.column, grid.low)
        ctx.save_for_backward(*saved, *parameters)
        ctx.settings = promise.clip, grid.formula, grid.span, geometry, gradients
        if target is None:
            return wrap(y)
        ctx.mark_dirty(target)
        return wrap(y), target

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None, grad_out: Tensor | None = None) -> tuple[Tensor | None, ...]:
        if grad is None and grad_out is None:
            return (None,) * len(ctx.needs_input_grad)
        z, stats, out, integers, column, low, *parameters = ctx.saved_tensors
        clip, formula, span, geometry, gradients = ctx.settings
        grid = Grid(formula, tuple(parameters), low, span)
        grad_out = None if grad_out is None else grad_out.contiguous(memory_format=torch.channels_last)
        if grad is None:
            sums, grad_weight, grad_bias = norm.backward_sums(z, out, None, grad_out, stats, clip), None, None
        else:
            products = ProductGradients(grad, integers, column, geometry, gradients)
            grad_value = products.input(z.shape)
            sums = norm.backward_sums(z, out, grad_value, grad_out, stats, clip, grid, products.operand)
            assert sums.steps is not None
            grad_weight = products.weight(sums.steps) * parameters[0]
            grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[6] else None
        shared = ctx.needs_input_grad[3] or (grad is None and clip.cap is None)
        grad_z = norm.backward_input(z, sums.grad, torch.empty_like(z) if shared else sums.grad, stats, sums.rows)
        grad_shortcut = sums.grad if ctx.needs_input_grad[3] else None
        constants = (None,) * (len(parameters) - len(sums.parameters))
        given = (grad_z, sums.rows[0], sums.rows[1], grad_shortcut, None, grad_weight, grad_bias)
        return (*given, *[None] * 6, *sums.parameters, *constants)


class MaxPool(torch.autograd.Function):
    """Maximum, in windows, of an activation without shortcut that a promise describes.

    Arguments: the promise's first three sources, the promise, the windows, the results of `norm.max_pool`, and a
    function that wraps the result.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        promise: Promise,
        window: norm.Window,
        pooled: tuple[Tensor, Tensor],
        wrap: Callable[[Tensor], Any],
    ) -> Tensor:
        out, places = pooled
        ctx.save_for_backward(promise.z_data, promise.stats, places)
        ctx.settings = promise.clip, window
        return wrap(out)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, stats, places = ctx.saved_tensors
        clip, window = ctx.settings
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_y = norm.max_pool_gradient(grad, places, z.shape, window)
        sums = norm.backward_sums(z, None, None, grad_y, stats, clip)
        grad_z = norm.backward_input(z, sums.grad, sums.grad, stats, sums.rows)
        return grad_z, sums.rows[0], sums.rows[1], None, None, None, None
