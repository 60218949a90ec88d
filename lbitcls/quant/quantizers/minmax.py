"""PyTorch's QAT: observed ranges instead of learned ones (torch.ao.quantization, Jacob et al., arXiv:1712.05877).

    min, max: moving averages, m ← m + c · (batch value - m), c = 0.01, with 0 inside the range
    inputs: scale = (max - min) / (quant_max - quant_min), zero_point = clip(quant_min - round(min / scale))
    weights: scale = max(-min, max) / ((quant_max - quant_min) / 2), zero_point = 0
    straight-through gradient inside the range, 0 outside; nothing is learned

Both averages are updated in training and fixed in eval, as in torch's FakeQuantize with its observer. The defaults
are 0-255 and -128..127; `reduce_range=True` gives inputs 0-127, as torch's default configuration does.

Deviations:
- x is divided by the scale; torch multiplies by its rounded inverse, so a value within an ulp of a tie may differ.
- A range of width 0 gets the scale 1 / (quant_max - quant_min); torch uses the smallest positive scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lbitcls.quant import functional
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer, extremes


class MinMax(Quantizer):
    """Quantizer to a grid over the observed range: symmetric for weights, with a zero point for inputs.

    Args:
        num_bits: Number of bits, 2 to 8.
        averaging_constant: Weight c of a batch's extremes in the moving average; 1: the last batch's extremes only.
        reduce_range: Use one bit fewer, as torch does by default for inputs on x86 engines.
        **kwargs: Arguments of `Quantizer`.
    """

    formula = Elementwise(functional.fake_quantize, functional.straight_through, functional.fake_quantize_plain)
    lowest: Tensor
    highest: Tensor

    def __init__(
        self, num_bits: int, averaging_constant: float = 0.01, reduce_range: bool = False, **kwargs: Any
    ) -> None:
        self.reduced = int(reduce_range)
        kwargs.setdefault("narrow_range", False)
        if kwargs.get("role", "input") == "input" and kwargs.get("signed") is None:
            kwargs["signed"] = False
        super().__init__(num_bits, **kwargs)
        self.averaging_constant = averaging_constant
        shape = () if self.num_channels is None else (self.num_channels,)
        self.register_buffer("lowest", torch.zeros(shape))
        self.register_buffer("highest", torch.zeros(shape))

    def integer_range(self) -> tuple[int, int]:
        lowest, highest = super().integer_range()
        return (lowest // 2, highest // 2) if self.reduced else (lowest, highest)

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        scale = self._scale()
        zero = self.zero_point()
        return scale, self.low - zero, self.high - zero

    def zero_point(self) -> Tensor:
        if self.symmetric:
            return torch.zeros_like(self.lowest)
        return torch.clamp(self.low - torch.round(self.lowest / self._scale()), self.low, self.high)

    @property
    def symmetric(self) -> bool:
        """True if the range is the same on both sides of zero."""
        return self.role == "weight"

    def forward(self, x: Tensor) -> Tensor:
        """Observe in training, then fake quantize."""
        if self.training and self.is_enabled and self.is_initialized:
            self.observe(x)
        return super().forward(x)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Move the averages toward the extremes of `x`."""
        for average, value in zip((self.lowest, self.highest), extremes(x.detach(), self.channel_axis), strict=True):
            average.lerp_(value.to(average.dtype), self.averaging_constant)

    def first_values(self, x: Tensor) -> None:
        self.set_range(*extremes(x, self.channel_axis))

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        self.lowest.copy_(lower.reshape(self.lowest.shape))
        self.highest.copy_(upper.reshape(self.highest.shape))

    def _scale(self) -> Tensor:
        lowest, highest = self.lowest.clamp(max=0), self.highest.clamp(min=0)
        steps = self.high - self.low
        width = 2 * torch.maximum(-lowest, highest) if self.symmetric else highest - lowest
        return torch.where(width == 0, torch.ones_like(width), width) / steps  # NaN stays NaN


register_method("TorchQAT", weight=MinMax, input=MinMax)
