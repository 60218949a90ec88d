"""DSQ: differentiable soft quantization (Gong et al., 2019, arXiv:1908.05033).

    Δ = (u - l) / (2^b - 1),   m_i = l + (i + 1/2) Δ,   φ(x) = s · tanh(k (x - m_i)),   s = 1 / tanh(kΔ/2)   (eq. 2-4)
    Q_S(x) = l + Δ (i + (φ(x) + 1) / 2) inside cell i, l below and u above the range                        (eq. 6)
    k = log(2/α - 1) / Δ; α = 1 - 1/s in (0, 1/2) is learned: the gap between tanh and 1 at the cell edge     (eq. 7, 8)

The value is the staircase (the nearest level); the gradients of x and α are those of Q_S. The sign function between
φ and the staircase passes gradients straight through. So inside the range, with v = x/Δ, the gradient of the step Δ
is round(v) - dQ_S/dx · v.

Deviations:
- Zero is on the grid: for inputs, l is used as an integer zero point; weights have no zero point, and their range is
  quant_min·Δ to u.
- The initial range minimizes the mean squared error on the data.
- The paper bounds α and adds λ/2·α² to the loss (section 3.3) without giving λ: `alpha_decay` is 1e-4 by default.
- Gradients of the range are multiplied by LSQ's factor 1 / sqrt(n · (2^b - 1)).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant import affine, functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer, fill
from lbitcls.quant.ranges import fill_scale, mse
from lbitcls.quant.spec import per_grid
from lbitcls.utils.errors import ConfigError

SMALLEST_ALPHA, LARGEST_ALPHA = 1e-3, 0.499


def soft_step(v: Tensor, sharpness: Tensor) -> Tensor:
    """Return φ at `v` steps: from -1 at the lower edge of a cell between two levels to 1 at its upper edge.

    Args:
        v: Values, in steps.
        sharpness: kΔ, greater than 0.
    """
    return torch.tanh(sharpness * (v - torch.floor(v) - 0.5)) / torch.tanh(sharpness / 2)


def soft_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    sharpness: Tensor,
    quant_min: Tensor,
    quant_max: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradient of Q_S for x, and each element's part of the gradients of scale, offset and sharpness."""
    zero = affine.zero_point(scale, offset, quant_min, quant_max)
    v = x / scale
    bounded = torch.clamp(v, quant_min - zero, quant_max - zero)
    inside = v == bounded
    grad_inside, grad_outside = torch.where(inside, grad, 0.0), torch.where(inside, 0.0, grad)
    t = bounded - torch.floor(bounded).add_(0.5)  # an infinite v itself would give NaN
    edge, s = torch.tanh(sharpness / 2), torch.sigmoid(2 * sharpness * t)  # tanh = 2 s - 1, but is slower
    curve = torch.addcmul(s, s, s, value=-1)  # a quarter of tanh' at t
    grad_x = (curve * (2 * sharpness / edge)).mul_(grad_inside)
    # d value / d scale: the level outside (counted from the zero point there), round(v) - slope * v inside
    levels = torch.round(bounded)
    grad_scale = levels.mul_(grad).addcmul_(grad_outside, zero).addcmul_(grad_x, bounded, value=-1)
    quarter = (1 - edge * edge) / (8 * edge)
    bent = t.mul_(curve).addcmul_(s, 2 * quarter, value=-1).add_(quarter)
    return grad_x, grad_scale, grad_outside, bent.mul_(grad_inside).mul_(2 * scale / edge)


def _forward(x: Tensor, scale: Tensor, offset: Tensor, sharpness: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return affine.fake_quantize(x, scale, offset, low, high)


def _forward_plain(x: Tensor, scale: Tensor, offset: Tensor, sharpness: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return affine.fake_quantize_plain(x, scale, offset, low, high)


class DSQ(Quantizer):
    """Quantizer with a learned range and a learned sharpness of the soft staircase that supplies the gradient.

    Args:
        num_bits: Number of bits, 2 to 8.
        alpha: Initial α, in (0, 0.5); smaller is steeper.
        alpha_decay: Factor λ of the loss term λ/2·α².
        **kwargs: Arguments of `Quantizer`.
    """

    formula = Elementwise(_forward, soft_gradients, _forward_plain, apart=True)
    bits_leave_range = True

    def __init__(self, num_bits: int, alpha: float = 0.2, alpha_decay: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(num_bits, **kwargs)
        if not isinstance(alpha, (int, float)) or not 0 < alpha < 0.5:
            raise ConfigError(f"DSQ: alpha must be a number between 0 and 0.5; got {alpha!r}.")
        shape = () if self.num_channels is None else (self.num_channels,)
        self.alpha_decay = alpha_decay
        self.upper = nn.Parameter(torch.ones(shape))
        self.lower = nn.Parameter(-torch.ones(shape)) if self.role == "input" else None
        self.alpha = nn.Parameter(torch.full(shape, float(alpha)))

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        n = x.numel() // self.upper.numel() if self.role == "weight" else x[:1].numel()
        scale, offset = self._scale_and_offset(1 / math.sqrt(max(n, 1) * (2**self.num_bits - 1)))
        alpha = self.alpha.clamp(SMALLEST_ALPHA, LARGEST_ALPHA)
        return scale, offset, torch.log(2 / alpha - 1), self.low, self.high

    def zero_point(self) -> Tensor:
        scale, offset = self._scale_and_offset(1.0)
        return affine.zero_point(scale, offset, self.low, self.high)

    def first_values(self, x: Tensor) -> None:
        self.set_range(*mse(per_grid(x, self.channel_axis), self))

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        if self.lower is None:
            fill_scale(self.upper, torch.maximum(upper, -lower), 1.0)
        else:
            fill(self.lower, lower)
            fill(self.upper, torch.where(upper > lower, upper, lower + 1))

    def regularization(self) -> Tensor | None:
        return self.alpha_decay / 2 * self.alpha.square().sum() if self.alpha_decay and self.is_enabled else None

    def _scale_and_offset(self, factor: float) -> tuple[Tensor, Tensor]:
        if self.lower is None:
            scale = functional.positive_scale(self.upper, factor) / self.quant_max
            return scale, torch.zeros_like(scale)
        lower = functional.scale_gradient(self.lower, factor)
        scale = functional.positive_scale(functional.scale_gradient(self.upper, factor) - lower)
        scale = scale / (2**self.num_bits - 1)
        return scale, lower - self.quant_min * scale


register_method("DSQ", weight=DSQ, input=DSQ)
