"""PACT: parameterized clipping activation (Choi et al., 2018, arXiv:1805.06085), with DoReFa weights as in the paper.

    y = clip(x, 0, α),   y_q = round(y · (2^b - 1) / α) · α / (2^b - 1)                              (equations 1, 2)
    ∂y_q/∂α = 1 where x >= α, 0 elsewhere                                                         (equation 3)
    loss + λ/2 · α²                                                                          (section 3.2)

Deviations:
- Signed inputs have the range [-α, α] on a symmetric grid; below the range, ∂y_q/∂α is -1.
- At exactly α the gradient goes to x, not to α.
- The initial α is the upper end of the range that minimizes the mean squared error, rather than a large constant that
  training shrinks, so that short runs start well.
- λ is an option here (`clip_decay`), since quantizer parameters take no weight decay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant import functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.quantizers.dorefa import DoReFaWeight
from lbitcls.quant.ranges import fill_scale, mse
from lbitcls.quant.spec import per_grid


def clip_gradients(grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return straight-through gradients; only clipped values contribute to the scale's gradient."""
    v = x / scale
    outside = (v < low) | (v > high)
    return torch.where(outside, 0.0, grad), torch.where(outside, torch.clamp(v, low, high) * grad, 0.0)


def clip_sums(sums: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor]:
    """Return the scale's gradient from the sums that `Elementwise` describes."""
    _, below, above = sums
    return (low * below + high * above,)


class PACT(Quantizer):
    """Quantizer with a learned upper clip α: unsigned range [0, α], signed range [-α, α].

    Args:
        num_bits: Number of bits, 2 to 8.
        clip_decay: Factor λ of the L2 penalty on α.
        **kwargs: Arguments of `Quantizer`.
    """

    formula = Elementwise(functional.fake_quantize, clip_gradients, functional.fake_quantize_plain, sums=clip_sums)
    bits_leave_range = True

    def __init__(self, num_bits: int, clip_decay: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(num_bits, narrow_range=True, **kwargs)
        self.clip_decay = clip_decay
        self.clip = nn.Parameter(torch.ones(()))

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        return functional.positive_scale(self.clip) / self.quant_max, self.low, self.high

    def first_values(self, x: Tensor) -> None:
        self.set_range(*mse(per_grid(x, None), self))

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        fill_scale(self.clip, torch.maximum(upper, -lower) if self.signed else upper, 1.0)

    def regularization(self) -> Tensor | None:
        return self.clip_decay / 2 * self.clip.square() if self.clip_decay and self.is_enabled else None


register_method("PACT", weight=DoReFaWeight, input=PACT)
