"""An elementwise formula and its backward pass, as one differentiable function.

A method gives two formulas of `(x, *parameters)`: the value, and the gradients of `x` and of each element's part of
the parameters. `Elementwise` makes of them a function that saves `x` and the parameters only, computes everything
else again in the backward pass, and sums the parts of a parameter's gradient over the elements that share it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lbitcls.quant.kernels import selection
from lbitcls.quant.spec import along, compute_dtype

Formula = Callable[..., Tensor]
Gradients = Callable[..., tuple[Tensor, ...]]


class Elementwise:
    """The differentiable function of a pair of formulas.

    The formulas are computed in float32 (float64 for float64); value and gradient have the dtype of `x`.

    Args:
        forward: `(x, *parameters) -> value`, elementwise.
        backward: `(grad, x, *parameters) -> (grad of x, part of the gradient of each parameter)`, elementwise; the
            last parameters may have none, which makes them constants.
        plain_forward: the same value in fewer passes over memory where nothing is compiled; None: `forward`.
        plain_backward: the same gradients, likewise; None: `backward`.
        tables: how many of the last parameters are vectors to look values up in, whatever their length.

    Example:
        >>> times = Elementwise(lambda x, a: a * x, lambda g, x, a: (a * g, x * g))
        >>> times(torch.ones(3), None, torch.tensor(2.0))
        tensor([2., 2., 2.])
    """

    def __init__(
        self,
        forward: Formula,
        backward: Gradients,
        plain_forward: Formula | None = None,
        plain_backward: Gradients | None = None,
        tables: int = 0,
    ) -> None:
        self._tables = tables
        self._forward, self._plain_forward = (
            _in_compute_dtype(forward),
            _in_compute_dtype(plain_forward or forward),
        )
        self._backward = _summed(backward)
        self._plain_backward = _summed(plain_backward or backward)
        self._function = _autograd_function(self)

    def __call__(self, x: Tensor, channel_axis: int | None, *parameters: Tensor) -> Tensor:
        """Apply the formula.

        Args:
            x: any shape, floating point.
            channel_axis: the axis that parameters of shape (C,) belong to; None: all have the shape ().
            parameters: each of shape () or (C,).
        """
        return self._function.apply(x, channel_axis, *parameters)

    # Not before they are needed: torch.compile imports inductor, which takes seconds.
    @cached_property
    def _fused_forward(self) -> Callable[..., Tensor]:
        return torch.compile(self._forward, dynamic=True)

    @cached_property
    def _fused_backward(self) -> Callable[..., tuple[Tensor, ...]]:
        return torch.compile(self._backward, dynamic=True)

    def value(self, x: Tensor, channel_axis: int | None, parameters: tuple[Tensor, ...]) -> Tensor:
        """The value, without a gradient, by the kernels in use."""
        if not torch.compiler.is_compiling() and selection.active_kind() == "fused":
            x = _dense(x)
            rows = self._fused_forward(_as_rows(x, channel_axis), *self._columns(parameters, channel_axis))
            return _like(rows, x, channel_axis)
        formula = self._forward if torch.compiler.is_compiling() else self._plain_forward
        return formula(x, *self._shaped(parameters, x.dim(), channel_axis))

    def gradients(
        self, grad: Tensor, x: Tensor, channel_axis: int | None, parameters: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Gradients of `x` and of the parameters that have one, by the kernels in use."""
        if not torch.compiler.is_compiling() and selection.active_kind() == "fused":
            x = _dense(x)
            grad = grad if grad.stride() == x.stride() else torch.empty_like(x, dtype=grad.dtype).copy_(grad)
            arguments = (_as_rows(grad, channel_axis), _as_rows(x, channel_axis))
            grad_x, *sums = self._fused_backward(*arguments, *self._columns(parameters, channel_axis))
            return (_like(grad_x, x, channel_axis), *(s.view(p.shape) for s, p in zip(sums, parameters)))
        formula = self._plain_backward
        if torch.compiler.is_compiling():
            # What hangs on `x` alone the compiler may compute in the forward pass, and keep: masks, in a layout that is
            # slow to read, beside or instead of `x`. Where `grad` is 0 every result is 0, whatever `x` is.
            formula, x = self._backward, torch.where(grad == 0, 0, x)
        grad_x, *sums = formula(grad, x, *self._shaped(parameters, x.dim(), channel_axis))
        return (grad_x, *(s.view(p.shape) for s, p in zip(sums, parameters)))

    def _shaped(self, parameters: tuple[Tensor, ...], dim: int, channel_axis: int | None) -> list[Tensor]:
        """The parameters, to broadcast against a tensor with `dim` axes; tables as they are."""
        split = len(parameters) - self._tables
        return [*(along(p, dim, channel_axis) for p in parameters[:split]), *parameters[split:]]

    def _columns(self, parameters: tuple[Tensor, ...], channel_axis: int | None) -> list[Tensor]:
        """The parameters, to broadcast against rows."""
        return [p.detach() for p in self._shaped(parameters, 2, None if channel_axis is None else 0)]


def _autograd_function(elementwise: Elementwise) -> Any:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, channel_axis: int | None, *parameters: Tensor) -> Tensor:
            ctx.save_for_backward(x, *parameters)
            ctx.channel_axis = channel_axis
            return elementwise.value(x, channel_axis, parameters)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            x, *parameters = ctx.saved_tensors
            gradients = elementwise.gradients(grad, x, ctx.channel_axis, tuple(parameters))
            constants = (None,) * (1 + len(parameters) - len(gradients))
            return (gradients[0], None, *gradients[1:], *constants)

    return Function


def _in_compute_dtype(formula: Formula) -> Formula:
    def computed(x: Tensor, *parameters: Tensor) -> Tensor:
        return formula(x.to(compute_dtype(x)), *parameters).to(x.dtype)

    return _with_own_code(computed)


def _summed(backward: Gradients) -> Gradients:
    """`backward` in the dtype of computation, with each parameter's parts summed to the parameter's shape."""

    def summed(grad: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        dtype = compute_dtype(x)
        grad_x, *parts = backward(grad.to(dtype), x.to(dtype), *parameters)
        return (grad_x.to(x.dtype), *(_sum_to(part, p) for part, p in zip(parts, parameters)))

    return _with_own_code(summed)


def _with_own_code(function: Any) -> Any:
    """`function` with a code object of its own: torch.compile counts recompilations, up to a limit, by code object."""
    function.__code__ = function.__code__.replace()
    return function


def _sum_to(part: Tensor, parameter: Tensor) -> Tensor:
    axes = [axis for axis in range(part.dim()) if parameter.dim() == 0 or parameter.shape[axis] == 1]
    return part.sum(axes) if axes else part


# Fused kernels see a vector, or a matrix with a row for each channel, whatever shape and memory format the tensor
# has, so that one compilation serves every layer.


def _as_rows(x: Tensor, channel_axis: int | None) -> Tensor:
    if channel_axis is None:
        return x.detach().as_strided((x.numel(),), (1,))
    return x.detach().movedim(channel_axis, 0).reshape(x.shape[channel_axis], -1)


def _like(rows: Tensor, x: Tensor, channel_axis: int | None) -> Tensor:
    """`rows` in the shape of `x`."""
    if channel_axis is None:
        return rows.as_strided(x.shape, x.stride())
    return rows.view(x.movedim(channel_axis, 0).shape).movedim(0, channel_axis)


def _dense(x: Tensor) -> Tensor:
    """`x`, in one block of memory without gaps, in whatever order of axes."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape)):
        if size > 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x
