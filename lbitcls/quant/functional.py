"""Formulas of quantizers, as functions of tensors.

A grid is defined by `scale` (one step) and the bounds `low = quant_min - zero_point`, `high = quant_max - zero_point`
in steps. Everything here is elementwise; `scale`, `low` and `high` broadcast against `x`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-12


def to_steps(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return `x` in whole steps, `round(clip(x / scale, low, high))`, as floats; ties to even, as in ONNX."""
    return torch.clamp(torch.round(x / scale), low, high)


def fake_quantize(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the grid value nearest to `x`, in the dtype of `x`."""
    return to_steps(x, scale, low, high) * scale


def fake_quantize_plain(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Compute `fake_quantize` in one buffer, for use without a gradient."""
    return x.div(scale).round_().clamp_(low, high).mul_(scale)


def late(grad: Tensor, x: Tensor) -> Tensor:
    """Return `x` for computing masks in a gradient formula.

    If a mask depended on `x` alone, the compiler of a whole model would compute it in the forward pass and keep it in
    addition to `x`, which on a CPU takes longer than everything else. So it depends on `grad` as well: where `grad`
    is 0, the gradients are 0 for any `x`.
    """
    return torch.where(grad == 0, 0.0, x) if torch.compiler.is_compiling() else x


def straight_through(grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor]:
    """Return the gradient of `fake_quantize` for a fixed scale: `grad` in the range (ends included), else 0."""
    v = late(grad, x) / scale
    return (torch.where((v >= low) & (v <= high), grad, 0.0),)


def learned_step_gradients(grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `fake_quantize` for a learned scale (LSQ, arXiv:1902.08153, equations 3 and 5).

    Returns:
        The gradient of `x`: `grad` inside the range (ends included), 0 outside. Each element's part of the gradient
        of `scale`: `grad` times `round(v) - v` inside, times the bound outside, where `v = x / scale`.
    """
    v = late(grad, x) / scale
    inside = (v >= low) & (v <= high)
    steps = torch.clamp(torch.round(v), low, high)
    return torch.where(inside, grad, 0.0), torch.where(inside, steps - v, steps) * grad


def no_sums(sums: Tensor, *parameters: Tensor) -> tuple[()]:
    """Return the gradients of the parameters for `straight_through`, which has none."""
    return ()


def learned_step_sums(sums: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor]:
    """Return the scale's gradient (`learned_step_gradients`) from the sums that `Elementwise` describes."""
    within, below, above = sums
    return (torch.addcmul(within, low, below).addcmul_(high, above),)


def learned_step_gradients_plain(
    grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `learned_step_gradients` on the CPU, in fewer passes over memory."""
    if not bounds_are_numbers(low, high):
        return learned_step_gradients(grad, x, scale, low, high)
    v = x / scale
    return clipped_gradients(grad, v, torch.round(v).clamp_(low, high), low, high)


def bounds_are_numbers(low: Tensor, high: Tensor) -> bool:
    """Return True if `clipped_gradients` applies: one range, whose ends are read without waiting for a device."""
    return low.device.type == "cpu" and not low.dim() and not high.dim()


def clipped_gradients(grad: Tensor, v: Tensor, steps: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a value clipped to a range and rounded, as `grad * steps - grad_x * v`.

    Args:
        grad: Gradient of the value.
        v: Value in steps, before clipping.
        steps: Value in steps after rounding, a bound where it was clipped; overwritten.
        low: Lower end of the range.
        high: Upper end of the range.
    """
    grad_x = torch.ops.aten.hardtanh_backward(grad, v, _just_beyond(low, -math.inf), _just_beyond(high, math.inf))
    return grad_x, steps.mul_(grad).addcmul_(grad_x, v, value=-1)


def _just_beyond(bound: Tensor, direction: float) -> float:
    """Return the next (normal) number beyond a bound, because hardtanh's range excludes its ends."""
    beyond = float(torch.nextafter(bound, bound.new_tensor(direction)))
    return beyond if bound != 0 else math.copysign(torch.finfo(bound.dtype).tiny, direction)


def _ste(soft: Tensor, hard: Tensor) -> Tensor:
    """Return `hard` in the forward pass, with the gradient of `soft` (straight-through estimator).

    The value is exactly `hard`; `soft + (hard - soft).detach()` would be off by an ulp.
    """
    return hard.detach() + (soft - soft.detach())


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x`, with its gradient multiplied by `factor`."""
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
    """Return the magnitude of a learned scale, at least `SMALLEST_SCALE`, with its gradient times `factor`.

    The factor is LSQ's (section 2.2); the magnitude keeps a scale usable after training drives it below zero.
    """
    return _PositiveScale.apply(scale, factor)
