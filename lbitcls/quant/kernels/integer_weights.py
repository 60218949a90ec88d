"""Weights as integers: the operand of an integer product, and the gradients that come back to the float weight.

A weight is quantized in every step. A chain of small operators would take longer than the products of a small network,
so formulas that clip, round and pass gradients straight through (`Elementwise.sums`) run as one C++ kernel in each
direction; other formulas give values on the grid, which are divided by the scale.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lbitcls.quant.kernels import native
from lbitcls.quant.kernels.once import differentiable_once


class WeightIntegers(NamedTuple):
    """Quantized weight, as integer products take it."""

    source: Tensor  # float tensor that receives the gradient of the quantized weight; its values are not read
    integers: Tensor  # int8, in steps
    scale: Tensor  # float32, without history, shape () or (O,)
    undefined: Tensor | bool  # whether any value is NaN, which integers cannot tell

    @property
    def column(self) -> Tensor:
        """Scale, shaped to broadcast against the integers."""
        return self.scale.view([-1] + [1] * (self.integers.dim() - 1)) if self.scale.dim() else self.scale


def of_values(value: Tensor, scale: Tensor) -> WeightIntegers:
    """Return the integers of a weight whose values are on a grid.

    Args:
        value: Quantized weight, float, (O, …).
        scale: Its scale, shape () or (O,).
    """
    value, scale = value.float(), scale.detach().float()
    column = scale.view([-1] + [1] * (value.dim() - 1)) if scale.dim() else scale
    integers = torch.round(value.detach() / column).to(torch.int8)
    return WeightIntegers(value, integers, scale, value.detach().isnan().any())


def has_kernel(formula: Any, weight: Tensor, grid: tuple[Tensor, ...], channel_axis: int | None) -> bool:
    """Return True if `by_kernel` quantizes such a weight: float32, with a grid of scale, low and high."""
    if torch.compiler.is_compiling():
        return False
    served = formula.sums is not None and len(grid) == 3 and channel_axis in (None, 0)
    served = served and type(weight) in (Tensor, torch.nn.Parameter)
    served = served and weight.dtype is torch.float32 and all(parameter.dtype is torch.float32 for parameter in grid)
    return served and _is_dense(weight) and native.library() is not None


def by_kernel(formula: Any, weight: Tensor, grid: tuple[Tensor, ...], low: int, high: int) -> WeightIntegers:
    """Return the integers of a float weight (O, …), quantized by one kernel.

    Args:
        formula: Formula for which `has_kernel` is true.
        weight: Normalized weight.
        grid: Arguments of the formula: scale, shape () or (O,), and the bounds.
        low: Smallest integer.
        high: Largest integer.
    """
    scale = grid[0].detach()
    integers, undefined = _integers(weight.detach(), scale, low, high)
    source = _Source.apply(weight, formula, low, high, *grid) if torch.is_grad_enabled() else weight
    return WeightIntegers(source, integers, scale, undefined)


class _Source(torch.autograd.Function):
    """Tensor that stands for the quantized weight; only its gradient is of use."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, formula: Any, low: int, high: int, *grid: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *grid)
        ctx.settings = formula, low, high
        return weight.view_as(weight)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *grid = ctx.saved_tensors
        formula, low, high = ctx.settings
        grad_weight, sums = _gradients(weight, grad, grid[0], low, high)
        of_grid = formula.sums(sums, *grid)
        return (grad_weight, None, None, None, *of_grid, *[None] * (len(grid) - len(of_grid)))


def _integers(weight: Tensor, scale: Tensor, low: int, high: int) -> tuple[Tensor, bool]:
    """Return the weight in steps, int8, and whether any value is NaN."""
    integers = torch.empty_like(weight, dtype=torch.int8)
    at, place = native.address, (float(low), float(high), *_rows(weight, scale))
    undefined = _kernels().quantize_weight(at(weight), at(scale.contiguous()), at(integers), *place)
    return integers, bool(undefined)


def _gradients(weight: Tensor, grad: Tensor, scale: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return the gradient of the weight, and the three sums of `Elementwise.sums`, (3,) or (3, O)."""
    if grad.stride() != weight.stride():
        grad = torch.empty_like(weight).copy_(grad)
    target, sums = torch.empty_like(weight), scale.new_empty(3, *scale.shape)
    at, place = native.address, (float(low), float(high), *_rows(weight, scale))
    _kernels().weight_gradients(at(weight), at(grad), at(scale.contiguous()), at(target), at(sums), *place)
    return target, sums


def _rows(weight: Tensor, scale: Tensor) -> tuple[int, int, int]:
    """Return the numbers of grids and of their elements, and of threads."""
    rows = max(scale.numel(), 1)
    return rows, weight.numel() // rows, torch.get_num_threads()


def _kernels() -> Any:
    return native.library()


def _is_dense(weight: Tensor) -> bool:
    """Return True if each output channel is one block of memory, in order."""
    return weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))
