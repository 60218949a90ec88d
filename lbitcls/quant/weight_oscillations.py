"""Oscillations of quantized weights (Nagel et al., 2022, arXiv:2203.11086): a loss that dampens them, and freezing.

    dampening loss   ‖ŵ - clip(w, s·n, s·p)‖², ŵ: the quantized weight, without a gradient           (section 4.2)
    oscillation      o = 1 if an integer changes in the direction opposite to its last change, else 0   (section 4.1)
    frequency        f ← m · o + (1 - m) · f
    freezing         where f > threshold, the integer becomes round(average) and stays
    average          average ← m · integer + (1 - m) · average, after freezing, as in the authors' code

For methods that normalize a weight (DoReFa, APoT, UQ, `weight_norm`), integers are those of the normalized weight, and
the middle of an integer's cell is the weight that the normalization, with the current statistics, maps to s·integer.
Dampening measures the distance of the weight itself to it, with the statistics as constants. The distance of the
normalized weight would be larger by 1 / std, and λ would mean something else than for other methods.

A frozen weight is written to the middle of its cell after each step of the optimizer, so it follows a learned scale and
the normalization, and exports need to know nothing. The authors replace the integer in the forward pass instead: same
quantized weight, but here a frozen weight still counts in the gradient norm and in a normalization's statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lbitcls.quant.layers import QuantConv2d, QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import along, compute_dtype

Self = TypeVar("Self", bound="Reversals")

OSCILLATING = 0.005
"""Frequency above which a weight counts as oscillating in records."""
MOST_ROUNDS = 30  # of writing frozen weights, whose values depend on a normalization that depends on them


def weight_quantizers(model: nn.Module) -> Iterator[tuple[str, QuantLayer, Quantizer]]:
    """Yield name, layer and weight quantizer of each layer whose weight is quantized, now or later."""
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLayer) and layer.weight_quantizer is not None:
            yield name, layer, layer.weight_quantizer


def quantizes(quantizer: Quantizer) -> bool:
    """Return True if `quantizer` is on and has its initial values."""
    return quantizer.is_enabled and quantizer.is_initialized


def lacks_inverse(quantizer: Quantizer) -> bool:
    """Return True if `quantizer` normalizes weights, but does not define where a normalized value comes from."""
    kind = type(quantizer)
    own = kind.normalize is not Quantizer.normalize
    return own and kind.denormalize is Quantizer.denormalize


def normalizes(quantizer: Quantizer) -> bool:
    """Return True if `quantizer` normalizes weights before it divides by the scale."""
    return quantizer.weight_norm or type(quantizer).normalize is not Quantizer.normalize


def dampening_loss(model: nn.Module) -> Tensor | float:
    """Return the sum of squared distances between weights and the middle of their cells; 0.0 if none is quantized now.

    Weights outside the range and frozen layers add nothing.
    """
    terms = [
        _squared_distance(layer.weight_to_quantize(), quantizer)
        for _, layer, quantizer in weight_quantizers(model)
        if quantizes(quantizer) and layer.weight.requires_grad
    ]
    return torch.stack(terms).sum() if terms else 0.0


def _squared_distance(weight: Tensor, quantizer: Quantizer) -> Tensor:
    weight = weight.to(compute_dtype(weight))
    with torch.no_grad():
        latent, grid, axis = quantizer.normalize(weight), quantizer.grid(weight), quantizer.channel_axis
        middle = quantizer.denormalize(quantizer.formula(latent, axis, *grid), weight)
        bounds = [(bound - quantizer.zero_point()) * grid[0] for bound in (quantizer.low, quantizer.high)]
        low, high = (along(bound, weight.dim(), axis) for bound in bounds)
        inside = (latent >= low) & (latent <= high)
    return torch.where(inside, weight - middle, 0.0).square().sum()


@dataclass
class Reversals:
    """Integers that change in the direction opposite to their last change; all tensors have one shape.

    Attributes:
        integers: Integers after the last step. int16.
        directions: Last change of each integer: -1, 1, or 0 before the first change. int8.
        frequency: Moving average of oscillations, in [0, 1]. float32.
        bits: Number of bits of the integers, which mean nothing with others.
    """

    integers: Tensor
    directions: Tensor
    frequency: Tensor
    bits: int

    def follow(self, integers: Tensor, momentum: float) -> None:
        """Count the changes to `integers`, without taking them over.

        Args:
            integers: Integers after a step.
            momentum: Weight m of the step in the moving average of oscillations, in [0, 1]; 0: only directions follow.
        """
        change = torch.sign(integers - self.integers).to(torch.int8)
        oscillates = change * self.directions < 0
        self.frequency.lerp_(oscillates.float(), momentum)
        self.directions = torch.where(change == 0, self.directions, change)

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes, tensors on the CPU."""
        return vars(self.to(torch.device("cpu")))

    def to(self: Self, device: torch.device) -> Self:
        """Return the state on `device`."""
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass
class Oscillations(Reversals):
    """Oscillations of one layer's weights, and the weights frozen so far; all tensors have the weight's shape.

    Attributes:
        integers: As in `Reversals`; those of frozen weights no longer change.
        average: Moving average of the integers. float32.
        frozen: True for frozen weights.
    """

    average: Tensor
    frozen: Tensor

    @classmethod
    def start(cls, layer: QuantLayer) -> Oscillations:
        """Return the state before the first step: no change seen yet, nothing frozen."""
        integers = read_integers(layer)
        zeros = torch.zeros_like(integers, dtype=torch.float32)
        bits = quantizer_of(layer).num_bits
        return cls(integers.short(), zeros.to(torch.int8), zeros, bits, integers.float(), zeros.bool())

    @torch.no_grad()
    def update(self, layer: QuantLayer, momentum: float, threshold: float) -> None:
        """Follow a step of the optimizer: compare integers, freeze weights, and write the frozen ones to `layer`.

        Args:
            layer: Layer of the weights.
            momentum: Weight m of a step in both moving averages, in (0, 1].
            threshold: Frequency above which a weight freezes.
        """
        integers = torch.where(self.frozen, self.integers, read_integers(layer))
        self.follow(integers, momentum)
        freezing = (self.frequency > threshold) & ~self.frozen
        self.integers = torch.where(freezing, self._rounded_average(layer), integers).short()
        self.average.lerp_(integers.float(), momentum)
        self.frozen |= freezing
        self.write(layer)
        self._release(layer)

    @torch.no_grad()
    def write(self, layer: QuantLayer) -> None:
        """Set the frozen weights of `layer` so that they have their integers, in the middle of the cell."""
        iterates = normalizes(quantizer_of(layer))
        for _ in range(MOST_ROUNDS if iterates else 1):
            layer.weight.copy_(torch.where(self.frozen, self._values(layer), layer.weight))
            if iterates and not self._lost(layer).any():
                break

    def _values(self, layer: QuantLayer) -> Tensor:
        """Return the weights in the middle of the cells of `integers`, for the normalization of the current weights."""
        quantizer = quantizer_of(layer)
        given = layer.weight_to_quantize()
        weight = given.to(compute_dtype(given))
        scale, zero = quantizer.grid(weight)[0], quantizer.zero_point()
        scale, zero = (along(value, weight.dim(), quantizer.channel_axis) for value in (scale, zero))
        values = quantizer.denormalize((self.integers - zero) * scale, weight)
        factor = layer.fold_factor() if isinstance(layer, QuantConv2d) else None
        values = values if factor is None else values / factor.view(-1, 1, 1, 1)
        return values.to(layer.weight.dtype)

    def _lost(self, layer: QuantLayer) -> Tensor:
        return self.frozen & (read_integers(layer) != self.integers)

    def _release(self, layer: QuantLayer) -> None:
        """Release weights that cannot keep their integers: no mean and deviation fit if nearly all are frozen."""
        if normalizes(quantizer_of(layer)):
            lost = self._lost(layer)
            self.frozen &= ~lost
            self.frequency.masked_fill_(lost, 0.0)

    def _rounded_average(self, layer: QuantLayer) -> Tensor:
        levels = quantizer_of(layer).levels()
        if levels is None:
            return torch.round(self.average).int()
        return levels[torch.bucketize(self.average, (levels[1:] + levels[:-1]) / 2)]


@torch.no_grad()
def read_integers(layer: QuantLayer) -> Tensor:
    """Return the integers of the layer's weight, int32."""
    return quantizer_of(layer).to_integer(layer.weight_to_quantize())


def quantizer_of(layer: QuantLayer) -> Quantizer:
    """Return the weight quantizer of a layer that has one."""
    assert layer.weight_quantizer is not None
    return layer.weight_quantizer
