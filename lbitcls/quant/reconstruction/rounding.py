"""Roundings of a layer's weights, up or down, relaxed to a number between (AdaRound, Nagel et al., arXiv:2004.10568).

    soft steps = clip(floor(w / scale) + h(v), low, high),   h(v) = clip(1.2 · sigmoid(v) - 0.1, 0, 1)     (equation 23)
    regularizer: sum of 1 - |2 h(v) - 1|^β; β falls from 20 to 2, after 20 % of the steps without it       (equation 24)
    result: up where h(v) ≥ 1/2, and w = scale · steps, which the ordinary quantizer rounds to the same integers

`w` lies in the middle of its integer's interval, so checkpoints and exporters need to know nothing about roundings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import along, compute_dtype
from lbitcls.utils.errors import ConfigError

WIDTH, LOWEST = 1.2, -0.1
WARMUP = 0.2
SHARPEST, FLATTEST = 20.0, 2.0


def soft_rounding(v: Tensor) -> Tensor:
    """Return h(v), from 0 (down) to 1 (up)."""
    return torch.clamp(torch.sigmoid(v) * WIDTH + LOWEST, 0, 1)


def first_variable(fraction: Tensor) -> Tensor:
    """Return the v with h(v) = `fraction`, in [0, 1)."""
    return torch.logit((fraction - LOWEST) / WIDTH)


def indecision(h: Tensor, exponent: float) -> Tensor:
    """Return 1 - |2 h - 1|^β of each rounding: 0 for a decided one."""
    return 1 - (2 * h - 1).abs().pow(exponent)


def exponent_at(step: int, steps: int) -> float | None:
    """Return β at `step` of `steps`; None during the warmup, which has no regularizer."""
    done = (step / steps - WARMUP) / (1 - WARMUP)
    if done < 0:
        return None
    return FLATTEST + (SHARPEST - FLATTEST) * (1 + math.cos(math.pi * done)) / 2


class Roundings:
    """Learned roundings of one layer's weight.

    Args:
        layer: Quantized layer with an initialized weight quantizer.

    Attributes:
        variable: v, of the weight's shape; requires a gradient.
        scale: Step of the grid, shaped to broadcast against the weight.
        low: Fewest steps.
        high: Most steps.
    """

    def __init__(self, layer: QuantLayer) -> None:
        quantizer = weight_quantizer(layer)
        weight = layer.weight_to_quantize().detach()
        weight = weight.to(compute_dtype(weight))
        grid = quantizer.qparams(weight)
        self.scale = along(grid.scale.to(weight.dtype), weight.dim(), grid.channel_axis)
        self.low, self.high = float(grid.quant_min), float(grid.quant_max)
        self.steps = weight / self.scale
        self.floor = torch.floor(self.steps)
        self.variable = first_variable(self.steps - self.floor).requires_grad_()

    def nearest(self) -> Tensor:
        """Return the steps of the ordinary quantizer."""
        return torch.clamp(torch.round(self.steps), self.low, self.high)

    def soft_weight(self) -> Tensor:
        """Return the weight with soft roundings."""
        return torch.clamp(self.floor + soft_rounding(self.variable), self.low, self.high) * self.scale

    def decided(self) -> Tensor:
        """Return the steps of the learned roundings."""
        return torch.clamp(self.floor + (self.variable.detach() >= 0), self.low, self.high)

    def settle(self, layer: QuantLayer, steps: Tensor) -> None:
        """Write `steps` into the layer's weight, so that the ordinary quantizer returns them."""
        layer.fill_weight(steps * self.scale)
        found = weight_quantizer(layer).to_integer(layer.weight_to_quantize())
        if not torch.equal(found, steps.to(found.dtype)):
            place = weight_quantizer(layer).place
            raise ConfigError(f"{place}: its weights do not keep their integers; leave the layer out of reconstruct.")


def weight_quantizer(layer: QuantLayer) -> Quantizer:
    """Return the weight's quantizer of a layer that has one."""
    quantizer = layer.weight_quantizer
    assert quantizer is not None  # units contain only such layers
    return quantizer


def require_uniform(name: str, layer: QuantLayer) -> None:
    """Raise `ConfigError` unless the layer's weights can be moved onto their grid: even levels, no normalization."""
    quantizer = weight_quantizer(layer)
    weight = layer.weight_to_quantize().detach()
    uneven = quantizer.levels() is not None or quantizer.thresholds() is not None
    if uneven or not torch.equal(quantizer.normalize(weight).to(weight.dtype), weight):
        what = "levels that are not evenly spaced" if uneven else "normalized weights"
        raise ConfigError(
            f"calibration.reconstruct needs evenly spaced levels of the weights themselves; {name} "
            f"({type(quantizer).__name__}) has {what}. Use a method such as LSQ, LSQPlus, DSQ or TorchQAT for it."
        )
