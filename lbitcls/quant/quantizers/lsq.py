"""LSQ: learned step size quantization (Esser et al., 2020, arXiv:1902.08153).

    v̄ = round(clip(v / s, quant_min, quant_max)),   v̂ = v̄ · s                                       (equations 1, 2)
    ∂v̂/∂s = round(v/s) - v/s inside the range, quant_min or quant_max outside, times g              (equation 3)
    ∂v̂/∂v = 1 inside, 0 outside                                                                    (equation 5)
    g = 1 / sqrt(n · quant_max),   initial s = 2·mean|v| / sqrt(quant_max)                            (section 2.2, 2.1)

Deviations:
- For inputs, n is the number of features of one sample, not of the batch, so that nothing depends on the batch size.
- The initial step minimizes the mean squared error on the data, and g = 1 / (sqrt(n) · quant_max), so that the end of
  the range, s · quant_max, learns at one pace for all bits. `init='paper'` selects the paper's step and g. Its range is
  2·sqrt(quant_max) means: 22 for 8-bit weights and 32 for 8-bit inputs, where few values lie. Its g belongs to that
  step: the smaller one of an 8-bit weight, whose range has values at its ends, would leave it, and cross zero.
- 8-bit weights use -127..127, so that every integer has its negative (an exporter flips the signs of channels).
- Gradients pass at exactly the ends of the range (the paper's inequality is strict): a ReLU's zeros lie there.
- If training drives a scale below zero, its magnitude is used. If all values are zero, the initial scale is that of
  the whole tensor, or 1 / quant_max.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lbitcls.quant import functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.ranges import fill_scale, mse
from lbitcls.quant.spec import per_grid


class LSQ(Quantizer):
    """Quantizer with a learned step size: one scale for the tensor, or one for each channel.

    Args:
        num_bits: Number of bits, 2 to 8.
        init: Rule of the initial step and the factor of its gradient: `mse`, the least mean squared error and
            1 / (sqrt(n) · quant_max), or `paper`, 2·mean|v| / sqrt(quant_max) and 1 / sqrt(n · quant_max).
        **kwargs: Arguments of `Quantizer`.

    Example:
        >>> quantizer = LSQ(4, role="weight")
        >>> quantizer(torch.randn(8, 3, 3, 3)).unique().numel() <= 16
        True
    """

    formula = Elementwise(
        functional.fake_quantize,
        functional.learned_step_gradients,
        functional.fake_quantize_plain,
        functional.learned_step_gradients_plain,
        sums=functional.learned_step_sums,
    )

    def __init__(self, num_bits: int, init: Literal["mse", "paper"] = "mse", **kwargs: Any) -> None:
        super().__init__(num_bits, **kwargs)
        self.init = init
        self.scale = nn.Parameter(torch.ones(() if self.num_channels is None else (self.num_channels,)))

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        n = x.numel() // self.scale.numel() if self.role == "weight" else x[:1].numel()
        steps = math.sqrt(self.quant_max) if self.init == "paper" else self.quant_max
        factor = 1 / (math.sqrt(max(n, 1)) * steps)
        return functional.positive_scale(self.scale, factor), self.low, self.high

    def first_values(self, x: Tensor) -> None:
        rows = per_grid(x, self.channel_axis)
        if self.init == "mse":
            self.set_range(*mse(rows, self))
            return
        mean = rows.abs().mean(1)
        fill_scale(self.scale, 2 * mean / math.sqrt(self.quant_max), 1 / self.quant_max)

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        scale = upper / self.quant_max
        scale = torch.maximum(scale, lower / self.quant_min) if self.signed else scale
        fill_scale(self.scale, scale, 1 / self.quant_max)


register_method("LSQ", weight=LSQ, input=LSQ)
