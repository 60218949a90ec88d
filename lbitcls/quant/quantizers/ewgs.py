"""EWGS: element-wise gradient scaling (Lee et al., 2021, arXiv:2104.00903), on a grid with a learned step.

    ∂L/∂x = g · (1 + δ · sign(g) · (x_n - x_q)) inside the range, 0 outside                          (equation 4)

where g is the gradient of the quantized value and x_n - x_q is the rounding error, in units of the whole range.

Deviations:
- The grid is LSQ's (one learned scale, with LSQ's factor and initial values, `init`) instead of two learned ends of the
  range and a learned output scale for each layer: the paper's contribution is the gradient, which works with any grid.
- δ is a constant, 1e-3, the value the paper starts from; the paper can also adapt it to the Hessian's trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lbitcls.quant import functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizers.lsq import LSQ


def scaled_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return LSQ's gradients, with the input's gradient scaled by its rounding error."""
    grad_x, grad_scale = functional.learned_step_gradients(grad, x, scale, low, high)
    v = x / scale
    error = (v - torch.round(v)) / (high - low)
    return grad_x * (1 + delta * torch.sign(grad_x) * error), grad_scale


def _forward(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, delta: Tensor) -> Tensor:
    return functional.fake_quantize(x, scale, low, high)


def _forward_plain(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, delta: Tensor) -> Tensor:
    return functional.fake_quantize_plain(x, scale, low, high)


class EWGS(LSQ):
    """Quantizer with a learned step that scales the input's gradient element by element.

    Args:
        num_bits: Number of bits, 2 to 8.
        delta: Strength δ of the scaling; 0: the straight-through estimator.
        **kwargs: Arguments of `Quantizer`.
    """

    formula = Elementwise(_forward, scaled_gradients, _forward_plain, apart=True)

    delta: Tensor

    def __init__(self, num_bits: int, delta: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(num_bits, **kwargs)
        self.register_buffer("delta", torch.tensor(float(delta)), persistent=False)

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*super().grid(x), self.delta)


register_method("EWGS", weight=EWGS, input=EWGS)
