"""The formulas that quantizers are made of, as functions of tensors.

A grid is given by `scale` (one step) and the bounds `low = quant_min - zero_point`, `high = quant_max - zero_point`
in steps. Everything here is elementwise; `scale`, `low` and `high` broadcast against `x`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-12


def to_steps(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`x` in whole steps, `round(clip(x / scale, low, high))`: integers as floats; ties go to even, as in ONNX."""
    return torch.clamp(torch.round(x / scale), low, high)


def fake_quantize(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The value of the grid nearest to `x`, in the dtype of `x`."""
    return to_steps(x, scale, low, high) * scale


def fake_quantize_plain(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`fake_quantize` in one buffer, for use without a gradient."""
    return x.div(scale).round_().clamp_(low, high).mul_(scale)


def late(grad: Tensor, x: Tensor) -> Tensor:
    """`x`, to compute masks of in a formula of gradients.

    A mask that hangs on `x` alone the compiler of a whole model would compute in the forward pass and keep beside `x`,
    which on a CPU takes longer than all the rest. So it hangs on `grad`, too: where that is 0 the gradients are 0,
    whatever `x` is.
    """
    return torch.where(grad == 0, 0.0, x) if torch.compiler.is_compiling() else x


def straight_through(grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor]:
    """The gradient of `fake_quantize` for a given scale: `grad` inside the range, its ends included, 0 outside."""
    v = late(grad, x) / scale
    return (torch.where((v >= low) & (v <= high), grad, 0.0),)


def learned_step_gradients(grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `fake_quantize` for a learned scale (LSQ, arXiv:1902.08153, equations 3 and 5).

    Returns:
        The gradient of `x`: `grad` inside the range (its ends included), 0 outside. Each element's part of the
        gradient of `scale`: `grad` times `round(v) - v` inside, times the bound outside, where `v = x / scale`.
    """
    v = x / scale
    inside = (v >= low) & (v <= high)
    steps = torch.clamp(torch.round(v), low, high)
    return torch.where(inside, grad, 0.0), torch.where(inside, steps - v, steps) * grad


def learned_step_gradients_plain(
    grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """`learned_step_gradients` for the CPU, in fewer passes over memory."""
    if not bounds_are_numbers(low, high):
        return learned_step_gradients(grad, x, scale, low, high)
    v = x / scale
    return clipped_gradients(grad, v, torch.round(v).clamp_(low, high), low, high)


def bounds_are_numbers(low: Tensor, high: Tensor) -> bool:
    """Whether `clipped_gradients` can be used: one range, whose ends are read without waiting for a device."""
    return low.device.type == "cpu" and not low.dim() and not high.dim()


def clipped_gradients(grad: Tensor, v: Tensor, steps: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a value clipped to a range and rounded in it, as `grad * steps - grad_x * v`.

    Args:
        grad: of the value.
        v: the value in steps, before it was clipped.
        steps: after it was rounded, a bound where it was clipped; overwritten.
        low: lower end of the range.
        high: upper end of the range.
    """
    grad_x = torch.ops.aten.hardtanh_backward(grad, v, _just_beyond(low, -math.inf), _just_beyond(high, math.inf))
    return grad_x, steps.mul_(grad).addcmul_(grad_x, v, value=-1)


def _just_beyond(bound: Tensor, direction: float) -> float:
    """The next number beyond a bound (of normal size), since hardtanh's range excludes its ends."""
    beyond = float(torch.nextafter(bound, bound.new_tensor(direction)))
    return beyond if bound != 0 else math.copysign(torch.finfo(bound.dtype).tiny, direction)


def _ste(soft: Tensor, hard: Tensor) -> Tensor:
    """`hard` in the forward pass, the gradient of `soft` in the backward pass (straight-through estimator).

    Written so that the value is exactly `hard`; `soft + (hard - soft).detach()` moves it by an ulp.
    """
    return hard.detach() + (soft - soft.detach())


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor`."""
    return _ste(x * factor, x)


class _PositiveScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.factor = factor
        return scale.abs().clamp_(min=SMALLEST_SCALE)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return torch.where(scale < 0, grad * -ctx.factor, grad * ctx.factor), None


def positive_scale(scale: Tensor, factor: float = 1.0) -> Tensor:
    """The magnitude of a learned scale, at least `SMALLEST_SCALE`; its gradient is multiplied by `factor`.

    The factor is LSQ's (section 2.2); the magnitude keeps a scale usable that training drove below zero.
    """
    return _PositiveScale.apply(scale, factor)
