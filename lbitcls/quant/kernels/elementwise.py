"""Elementwise formula and its backward pass, as one differentiable function.

A method supplies two formulas of `(x, *parameters)`: the value, and the gradients of `x` and of each element's part of
the parameters. `Elementwise` combines them into a function that saves only `x` and the parameters, recomputes
everything else in the backward pass, and sums the parts of a parameter's gradient over the elements that share it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lbitcls.quant.kernels import selection
from lbitcls.quant.kernels.integer_step import integer_function
from lbitcls.quant.kernels.kept import keep, kept
from lbitcls.quant.spec import along, compute_dtype

Formula = Callable[..., Tensor]
Gradients = Callable[..., tuple[Tensor, ...]]


class Elementwise:
    """Differentiable function made of a pair of formulas.

    The formulas compute in float32 (float64 for float64); value and gradient have the dtype of `x`.

    Args:
        forward: Function `(x, *parameters) -> value`, elementwise.
        backward: Function `(grad, x, *parameters) -> (grad of x, part of the gradient of each parameter)`, elementwise;
            it may omit the last parameters, which makes them constants.
        plain_forward: Function with the same value in fewer passes over memory, for uncompiled code; None: `forward`.
        plain_backward: Function with the same gradients, likewise; None: `backward`.
        tables: Number of trailing parameters that are lookup tables (vectors of any length).
        apart: In a compiled model, run the gradients as a separate operator with the fused kernel. For formulas with
            several sums, which inductor splits over many passes, some of them across the memory format.
        sums: Function `(sums, *parameters) -> gradients of the parameters that have one`, for a formula that clips,
            rounds to nearest and passes gradients straight through; `sums` (3,): those of the gradient within the range
            times `round(v) - v`, below the range, and above it. None: another formula. Kernels written for such
            formulas (`norm`) run only where it is given.

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
        apart: bool = False,
        sums: Gradients | None = None,
    ) -> None:
        self._tables = tables
        self.sums = sums
        self._apart = _register(self) if apart else None
        self._forward, self._plain_forward = (
            _in_compute_dtype(forward),
            _in_compute_dtype(plain_forward or forward),
        )
        self._steps = _steps(forward)
        self._codes = _codes(forward)
        self._parts = _parts(backward)
        self._backward = _summed(backward)
        self._plain_backward = _summed(plain_backward or backward)
        self._function = _autograd_function(self)
        self.integer_function = integer_function(self)

    def __call__(self, x: Tensor, channel_axis: int | None, *parameters: Tensor) -> Tensor:
        """Apply the formula.

        Args:
            x: Floating-point tensor of any shape.
            channel_axis: Axis that parameters of shape (C,) belong to; None: all have the shape ().
            parameters: Parameters of shape () or (C,).
        """
        return self._function.apply(x, channel_axis, *parameters)

    # Compiled on first use: torch.compile imports inductor, which takes seconds.
    @cached_property
    def _fused_forward(self) -> Callable[..., Tensor]:
        return selection.compiled(self._forward)

    @cached_property
    def _fused_backward(self) -> Callable[..., tuple[Tensor, ...]]:
        return selection.compiled(self._backward)

    def value(self, x: Tensor, channel_axis: int | None, parameters: tuple[Tensor, ...]) -> Tensor:
        """Return the value, without a gradient, using the selected kernels."""
        if selection.fused_now():
            x = dense(x)
            rows = self._fused_forward(as_rows(x, channel_axis), *self._columns(parameters, channel_axis))
            return like(rows, x, channel_axis)
        formula = self._forward if torch.compiler.is_compiling() else self._plain_forward
        return formula(x, *self._shaped(parameters, x.dim(), channel_axis))

    @cached_property
    def _fused_codes(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return selection.compiled(self._codes)

    @cached_property
    def _fused_parts(self) -> Callable[..., tuple[Tensor, ...]]:
        return selection.compiled(self._parts)

    @property
    def matrix_formulas(self) -> tuple[Callable[..., Any], Callable[..., tuple[Tensor, ...]]]:
        """Uncompiled `codes` and `gradients` for tensors and parameters of shape (), to build larger kernels from."""
        return self._codes, self._backward

    def codes(self, x: Tensor, low: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the value in steps above `low`, uint8, and whether any is NaN; parameters have the shape ()."""
        if not selection.fused_now():
            return self._codes(x, low, *parameters)
        x = dense(x)
        codes, undefined = self._fused_codes(as_rows(x, None), low, *self._columns(parameters, None))
        return like(codes, x, None), undefined

    @cached_property
    def _fused_steps(self) -> Callable[..., Tensor]:
        return selection.compiled(self._steps)

    def steps(self, x: Tensor, low: Tensor, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return the value in steps, of type `dtype`; parameters have the shape ()."""
        if not selection.fused_now():
            return self._steps(x, dtype, *parameters)
        x = dense(x)
        return like(self._fused_steps(as_rows(x, None), dtype, *self._columns(parameters, None)), x, None)

    def parts(self, x: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return each element's derivative by each parameter that has a gradient; parameters have the shape ()."""
        if not selection.fused_now():
            return self._parts(x, *parameters)
        x = dense(x)
        parts = self._fused_parts(as_rows(x, None), *self._columns(parameters, None))
        return tuple(like(part, x, None) for part in parts)

    def gradients(
        self, grad: Tensor, x: Tensor, channel_axis: int | None, parameters: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return the gradients of `x` and of the parameters that have one, using the selected kernels."""
        compiling = torch.compiler.is_compiling()
        if compiling and self._apart is not None:
            tensors = [torch.as_tensor(p, device=x.device) for p in parameters]
            return tuple(torch.ops.lbitcls.gradients(self._apart, grad, x, channel_axis, tensors))
        if compiling or selection.is_traced():  # plain gradients may read values
            return self._gradients_by(self._backward, grad, x, channel_axis, parameters)
        selection.select_at_first_use(x.device.type)  # a forward pass in eval does not select
        if selection.fused_now():
            return self.gradients_fused(grad, x, channel_axis, parameters)
        return self.gradients_plain(grad, x, channel_axis, parameters)

    def gradients_plain(
        self, grad: Tensor, x: Tensor, channel_axis: int | None, parameters: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Compute `gradients` with PyTorch's operators."""
        return self._gradients_by(self._plain_backward, grad, x, channel_axis, parameters)

    def gradients_fused(
        self, grad: Tensor, x: Tensor, channel_axis: int | None, parameters: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Compute `gradients` with the fused kernel."""
        x = dense(x)
        grad = grad if grad.stride() == x.stride() else torch.empty_like(x, dtype=grad.dtype).copy_(grad)
        arguments = (as_rows(grad, channel_axis), as_rows(x, channel_axis))
        grad_x, *sums = self._fused_backward(*arguments, *self._columns(parameters, channel_axis))
        return (like(grad_x, x, channel_axis), *(s.view(p.shape) for s, p in zip(sums, parameters)))

    def _gradients_by(
        self,
        formula: Gradients,
        grad: Tensor,
        x: Tensor,
        channel_axis: int | None,
        parameters: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        grad_x, *sums = formula(grad, x, *self._shaped(parameters, x.dim(), channel_axis))
        return (grad_x, *(s.view(p.shape) for s, p in zip(sums, parameters)))

    def empty_gradients(
        self, grad: Tensor, x: Tensor, channel_axis: int | None, parameters: list[Tensor]
    ) -> list[Tensor]:
        """Return tensors shaped like the gradients, in the memory format of `x`."""
        _, *sums = self._gradients_by(self._backward, grad, x, channel_axis, tuple(parameters))
        return [torch.empty_like(x), *(torch.empty_like(p) for p, _ in zip(parameters, sums))]

    def _shaped(self, parameters: tuple[Tensor, ...], dim: int, channel_axis: int | None) -> list[Tensor]:
        """Return the parameters, shaped to broadcast against a tensor with `dim` axes; tables are unchanged."""
        if not torch.compiler.is_compiling():  # numbers come from a compiled part, where the graph breaks
            parameters = tuple(torch.as_tensor(p) for p in parameters)
        split = len(parameters) - self._tables
        return [*(along(p, dim, channel_axis) for p in parameters[:split]), *parameters[split:]]

    def _columns(self, parameters: tuple[Tensor, ...], channel_axis: int | None) -> list[Tensor]:
        """Return the parameters, shaped to broadcast against rows."""
        return [p.detach() for p in self._shaped(parameters, 2, None if channel_axis is None else 0)]


def _autograd_function(elementwise: Elementwise) -> Any:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, channel_axis: int | None, *parameters: Tensor) -> Tensor:
            keep(ctx, x, *parameters)
            ctx.channel_axis = channel_axis
            return elementwise.value(x, channel_axis, parameters)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            x, *parameters = kept(ctx)
            gradients = elementwise.gradients(grad, x, ctx.channel_axis, tuple(parameters))
            constants = (None,) * (1 + len(parameters) - len(gradients))
            return (gradients[0], None, *gradients[1:], *constants)

    return Function


_APART: list[Elementwise] = []


def _register(elementwise: Elementwise) -> int:
    """Return the number that identifies a function to the operator `lbitcls::gradients`."""
    _APART.append(elementwise)
    return len(_APART) - 1


@torch.library.custom_op(
    "lbitcls::gradients",
    mutates_args=(),
    schema="(int function, Tensor grad, Tensor x, int? channel_axis, Tensor[] parameters) -> Tensor[]",
    tags=(torch.Tag.flexible_layout,),
)
def _gradients(
    function: int, grad: Tensor, x: Tensor, channel_axis: int | None, parameters: list[Tensor]
) -> list[Tensor]:
    elementwise = _APART[function]
    of = elementwise.gradients_fused if selection.can_compile(x.device.type) else elementwise.gradients_plain
    grad_x, *sums = of(grad, x, channel_axis, tuple(parameters))
    expected = torch.empty_like(x)
    return [grad_x if grad_x.stride() == expected.stride() else expected.copy_(grad_x), *sums]


@_gradients.register_fake
def _(function: int, grad: Tensor, x: Tensor, channel_axis: int | None, parameters: list[Tensor]) -> list[Tensor]:
    return _APART[function].empty_gradients(grad, x, channel_axis, parameters)


def _in_compute_dtype(formula: Formula) -> Formula:
    def computed(x: Tensor, *parameters: Tensor) -> Tensor:
        return formula(x.to(compute_dtype(x)), *parameters).to(x.dtype)

    return _with_own_code(computed)


def _steps(forward: Formula) -> Formula:
    def steps(x: Tensor, dtype: torch.dtype, scale: Tensor, *parameters: Tensor) -> Tensor:
        value = forward(x.to(compute_dtype(x)), scale, *parameters)
        return torch.round(value * (1 / scale)).to(dtype)  # next to an integer, however the product is rounded

    return _with_own_code(steps)


def _codes(forward: Formula) -> Callable[..., tuple[Tensor, Tensor]]:
    def codes(x: Tensor, low: Tensor, scale: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        value = forward(x.to(compute_dtype(x)), scale, *parameters)
        steps = torch.round(value * (1 / scale)) - low
        return steps.to(torch.uint8), steps.sum().isnan()  # `any` takes twice as long, compiled

    return _with_own_code(codes)


def _parts(backward: Gradients) -> Gradients:
    def parts(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        x = x.to(compute_dtype(x))
        return backward(torch.ones_like(x), x, *parameters)[1:]

    return _with_own_code(parts)


def _summed(backward: Gradients) -> Gradients:
    """Return `backward` in the compute dtype, with each parameter's parts summed to the parameter's shape."""

    def summed(grad: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        dtype = compute_dtype(x)
        grad_x, *parts = backward(grad.to(dtype), x.to(dtype), *parameters)
        return (grad_x.to(x.dtype), *(_sum_to(part, p) for part, p in zip(parts, parameters)))

    return _with_own_code(summed)


def _with_own_code(function: Any) -> Any:
    """Return `function` with its own code object: torch.compile limits recompilations per code object."""
    function.__code__ = function.__code__.replace()
    return function


def _sum_to(part: Tensor, parameter: Tensor) -> Tensor:
    axes = [axis for axis in range(part.dim()) if parameter.dim() == 0 or parameter.shape[axis] == 1]
    return part.sum(axes) if axes else part


# Fused kernels receive a vector, or a matrix with one row per channel, regardless of the tensor's shape and memory
# format, so that one compilation serves every layer.


def as_rows(x: Tensor, channel_axis: int | None) -> Tensor:
    """Return a dense `x` as a vector, or with a channel axis as a matrix (C, elements of each); without a gradient."""
    if channel_axis is None:
        return x.detach().as_strided((x.numel(),), (1,))
    return x.detach().movedim(channel_axis, 0).reshape(x.shape[channel_axis], -1)


def like(rows: Tensor, x: Tensor, channel_axis: int | None) -> Tensor:
    """Return `rows` in the shape of `x`."""
    if channel_axis is None:
        return rows.as_strided(x.shape, x.stride())
    return rows.view(x.movedim(channel_axis, 0).shape).movedim(0, channel_axis)


def dense(x: Tensor) -> Tensor:
    """Return `x` in one block of memory without gaps, in any order of axes."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape)):
        if size > 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x
