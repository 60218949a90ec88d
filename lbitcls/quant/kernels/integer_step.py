"""Product of a quantized input and a quantized weight as one differentiable function, computed in integers.

Forward: the input's formula gives uint8 codes, `kernels.integer_weights` int8 weights, `kernels.integer_operators`
multiplies. The backward pass is that of the simulation: the products of `kernels.product_gradients`, and the formula's
own gradients. It saves the float input, which the operation before it usually saves anyway, and the weight's integers.

The gradient of an input quantizer's parameter needs no gradient of the input:

    Σ ∂L/∂x̂ · r = Σ transposed(∂L/∂y, ŵ) · r = Σ correlation(∂L/∂y, r) · ŵ,   r = ∂x̂/∂parameter

so a first layer, whose input is an image, computes one weight gradient, with channels [x̂, r], instead of two products.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from lbitcls.quant.kernels import integer_operators as operators
from lbitcls.quant.kernels.integer_operators import Geometry
from lbitcls.quant.kernels.integer_weights import WeightIntegers
from lbitcls.quant.kernels.kept import keep, kept
from lbitcls.quant.kernels.once import differentiable_once
from lbitcls.quant.kernels.product_gradients import ProductGradients


class Formula(Protocol):
    """Formula of an input quantizer (`elementwise.Elementwise`)."""

    @property
    def integer_function(self) -> Any:
        """Autograd function of the product of an input on this formula's grid."""
        ...

    def codes(self, x: Tensor, low: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the value in steps above `low`, uint8, and whether any is NaN."""
        ...

    def steps(self, x: Tensor, low: Tensor, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return the value in steps."""
        ...

    def parts(self, x: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return each element's derivative by each parameter that has a gradient."""
        ...

    def gradients(
        self, grad: Tensor, x: Tensor, channel_axis: int | None, parameters: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return the gradients of `x` and of the parameters that have one."""
        ...


def integer_product(
    formula: Formula,
    x: Tensor,
    grid: tuple[Tensor, ...],
    low: Tensor,
    weight: WeightIntegers,
    bias: Tensor | None,
    geometry: Geometry | None,
    gradients: str,
) -> Tensor:
    """Return the product of an input, which this quantizes, and a quantized weight; differentiable.

    Args:
        formula: The input quantizer's formula.
        x: Float input, normalized: (N, C, H, W), or (N, C) for a matrix product.
        grid: Parameters of the formula, scale first, each of shape ().
        low: Smallest number of steps, which becomes code 0; shape ().
        weight: Quantized weight.
        bias: (O,).
        geometry: Arguments of the convolution; None: matrix product.
        gradients: Type in which the products of the backward pass run (`kernels.product_gradients`).

    Returns:
        float32, channels_last if it has four axes.
    """
    return formula.integer_function.apply(x, weight.source, bias, *weight[1:], low, geometry, gradients, *grid)


def integer_function(formula: Formula) -> Any:
    """Return the autograd function behind `integer_product` for a formula of the input."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            x: Tensor,
            source: Tensor,
            bias: Tensor | None,
            integers: Tensor,
            weight_scale: Tensor,
            undefined: Tensor | bool,
            low: Tensor,
            geometry: Geometry | None,
            gradients: str,
            *grid: Tensor,
        ) -> Tensor:
            weight = WeightIntegers(source, integers, weight_scale, undefined)
            codes, undefined_input = formula.codes(x, low, grid)
            keep(ctx, x, integers, weight.column, low, *grid)
            ctx.geometry, ctx.gradients = geometry, gradients
            return multiply(codes, weight, grid[0], low, bias, geometry, undefined_input)

        @staticmethod
        @differentiable_once
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            x, integers, column, low, *rest = kept(ctx)
            needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
            needs_grid = any(ctx.needs_input_grad[9:])
            products, grid = ProductGradients(grad, integers, column, ctx.geometry, ctx.gradients), tuple(rest)
            grad_bias = grad.sum([axis for axis in range(grad.dim()) if axis != 1]) if needs_bias else None
            steps = formula.steps(x, low, grid, products.operand)
            grad_weight: Any
            grad_x: Tensor | None = None
            if not needs_x and needs_grid and (ctx.geometry is None or ctx.geometry.groups == 1):
                grad_weight, *sums = _gradients_of_image(formula, products, x, steps, grid, integers, column)
            else:
                grad_value, grad_weight = products.both(steps, grid[0], needs_x or needs_grid, needs_weight)
                sums = []
                if grad_value is not None:
                    grad_x, *sums = formula.gradients(grad_value, x, None, grid)
                    grad_x = grad_x.contiguous() if x.is_contiguous() else grad_x  # as PyTorch's convolution
            constants = (None,) * (len(grid) - len(sums))
            return (grad_x if needs_x else None, grad_weight, grad_bias, *[None] * 6, *sums, *constants)

    return Function


def multiply(
    codes: Tensor,
    weight: WeightIntegers,
    scale: Tensor,
    low: Tensor,
    bias: Tensor | None,
    geometry: Geometry | None,
    undefined: Tensor | bool,
) -> Tensor:
    """Return the convolution or, with no geometry, the matrix product; see `kernels.integer_operators`.

    Args:
        undefined: Whether any input is NaN. Integers have no NaN: as the scale, it makes every result NaN, as in the
            simulation.
    """
    undefined = undefined | weight.undefined
    scale, low = scale.detach(), torch.as_tensor(low)
    if isinstance(undefined, Tensor) or undefined:
        scale = torch.where(torch.as_tensor(undefined), torch.nan, scale)
    given = (codes, weight.integers, scale, low, weight.scale, bias)
    if geometry is None:
        return (operators.multiply_matrices if operators.is_direct() else operators.integer_linear)(*given)
    convolve = operators.convolve if operators.is_direct() else operators.integer_conv2d
    stride, padding, dilation, groups = geometry
    return convolve(*given, list(stride), list(padding), list(dilation), groups)


def _gradients_of_image(
    formula: Formula,
    products: ProductGradients,
    x: Tensor,
    steps: Tensor,
    grid: tuple[Tensor, ...],
    integers: Tensor,
    column: Tensor,
) -> list[Tensor]:
    """Return the gradients of the weight and of the formula's parameters, by one product."""
    parts = [part.to(steps.dtype) for part in formula.parts(x, grid)]
    by_steps, *by_parts = products.weight(torch.cat([steps, *parts], dim=1)).split(integers.shape[1], dim=1)
    return [by_steps * grid[0], *((product * integers * column).sum() for product in by_parts)]
