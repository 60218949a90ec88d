"""EWGS: element-wise gradient scaling (Lee et al., 2021, arXiv:2104.00903), on a grid with a learned step.

    ∂L/∂x = g · (1 + δ · sign(g) · (x_n - x_q)) inside the range, 0 outside                          (equation 4)

where g is the gradient of the quantized value and x_n - x_q the rounding error, in units of the whole range.

Deviations:
- The grid is LSQ's (one learned scale, LSQ's factor and first values) instead of two learned ends of the range and a
  learned scale of each layer's output: the paper's contribution is the gradient, which any grid can have.
- δ is a constant, 1e-3, the value the paper starts from; the paper may also follow the Hessian's trace.
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
    """LSQ's gradients, the input's scaled by its rounding error."""
    grad_x, grad_scale = functional.learned_step_gradients(grad, x, scale, low, high)
    v = x / scale
    error = (v - torch.round(v)) / (high - low)
    return grad_x * (1 + delta * torch.sign(grad_x) * error), grad_scale


def _forward(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, delta: Tensor) -> Tensor:
    return functional.fake_quantize(x, scale, low, high)


def _forward_plain(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, delta: Tensor) -> Tensor:
    return functional.fake_quantize_plain(x, scale, low, high)


class EWGS(LSQ):
    """A learned step whose input's gradient is scaled element by element.

    Args:
        num_bits: 2 to 8.
        delta: δ, how strongly; 0: the straight-through estimator.
        **kwargs: as `Quantizer`.
    """

    formula = Elementwise(_forward, scaled_gradients, _forward_plain, apart=True)

    delta: Tensor

    def __init__(self, num_bits: int, delta: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(num_bits, **kwargs)
        self.register_buffer("delta", torch.tensor(float(delta)), persistent=False)

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*super().grid(x), self.delta)


register_method("EWGS", weight=EWGS, input=EWGS)
