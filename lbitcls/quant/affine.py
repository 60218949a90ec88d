"""Grids with a learned offset: formulas and the base class that LSQ+ and DSQ share for inputs.

    zero_point = clip(round(-offset / scale), quant_min, quant_max),   an integer, so that zero is on the grid
    low = quant_min - zero_point,   high = quant_max - zero_point

In the gradients the offset acts as in the papers: it shifts the values beyond the ends of the range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lbitcls.quant import functional


def zero_point(scale: Tensor, offset: Tensor, quant_min: Tensor, quant_max: Tensor) -> Tensor:
    """Return the integer that stands for 0 if `offset` is the value of integer 0."""
    return torch.clamp(torch.round(-offset / scale), quant_min, quant_max)


def fake_quantize(x: Tensor, scale: Tensor, offset: Tensor, quant_min: Tensor, quant_max: Tensor) -> Tensor:
    """Return the nearest grid value."""
    zero = zero_point(scale, offset, quant_min, quant_max)
    return functional.fake_quantize(x, scale, quant_min - zero, quant_max - zero)


def fake_quantize_plain(x: Tensor, scale: Tensor, offset: Tensor, quant_min: Tensor, quant_max: Tensor) -> Tensor:
    """Compute `fake_quantize` in one buffer, for use without a gradient."""
    zero = zero_point(scale, offset, quant_min, quant_max)
    return functional.fake_quantize_plain(x, scale, quant_min - zero, quant_max - zero)


def gradients(
    grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor, quant_min: Tensor, quant_max: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return straight-through gradients (LSQ+, arXiv:2004.09576, equations 4 and 5).

    Returns:
        The gradient of `x`, and each element's part of the gradients of `scale` (`round(v) - v` inside the range,
        quant_min or quant_max outside) and of `offset` (0 inside, 1 outside), times `grad`.
    """
    zero = zero_point(scale, offset, quant_min, quant_max)
    v = x / scale
    below, above = v < quant_min - zero, v > quant_max - zero
    ends = torch.where(below, quant_min, quant_max)
    outside = below | above
    grad_scale = torch.where(outside, ends, torch.round(v) - v) * grad
    return torch.where(outside, 0.0, grad), grad_scale, torch.where(outside, grad, 0.0)


def sums_of_gradients(
    sums: Tensor, scale: Tensor, offset: Tensor, quant_min: Tensor, quant_max: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `scale` and `offset` from the sums that `Elementwise` describes."""
    _, below, above = sums
    return *functional.learned_step_sums(sums, scale, quant_min, quant_max), below + above


def gradients_plain(
    grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor, quant_min: Tensor, quant_max: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `gradients` from those of a learned step: outside the range the ends differ by the zero point."""
    zero = zero_point(scale, offset, quant_min, quant_max)
    grad_x, grad_scale = functional.learned_step_gradients_plain(grad, x, scale, quant_min - zero, quant_max - zero)
    outside = grad - grad_x
    return grad_x, grad_scale.addcmul_(outside, zero), outside
