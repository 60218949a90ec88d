"""Values between the steps of a network: float tensors, quantized tensors, and constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbitcls.deploy.targets.xnnpack.steps import Step

Value = Any  # Tensor, Integers, np.ndarray or None
INT8 = (-128, 127, torch.int8)


@dataclass(frozen=True)
class Integers:
    """Quantized tensor: int8 values with one scale and zero point."""

    values: Tensor
    scale: float
    zero_point: int

    def real(self) -> Tensor:
        """Return the float tensor; each call adds a node of its own, as XNNPACK fuses it with the one that reads it."""
        return torch.ops.quantized_decomposed.dequantize_per_tensor(self.values, self.scale, self.zero_point, *INT8)

    def again(self, real: Tensor) -> Integers:
        """Return a tensor whose values lie on the same grid, in integers."""
        return quantized(real, self.scale, self.zero_point)


def quantized(x: Tensor, scale: float, zero_point: int) -> Integers:
    """Quantize `x` to the whole range of int8."""
    values = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, zero_point, *INT8)
    return Integers(values, scale, zero_point)


def real(value: Value) -> Tensor:
    """Return the float tensor of a value that is computed from the image."""
    return value.real() if isinstance(value, Integers) else value


def keeping(function: Callable[..., Tensor]) -> Callable[..., Value]:
    """Make a function of float tensors, whose results are some of its input's values, keep integers."""

    def of_either(step: Step, x: Value, *others: Value) -> Value:
        result = function(step, real(x), *others)
        return x.again(result) if isinstance(x, Integers) else result

    return of_either


def real_rank(value: Value) -> int:
    """Return the number of axes of a value."""
    return value.values.dim() if isinstance(value, Integers) else value.ndim


def operand(step: Step, place: int, value: Value, rank: int) -> Any:
    """Return an operand as XNNPACK accepts it: a number, or a tensor of `rank` axes."""
    if not isinstance(value, np.ndarray):
        return real(value)
    if value.size == 1:
        return float(value.reshape(()))
    return step.constant(f"operand_{place}", value.reshape((1,) * (rank - value.ndim) + value.shape))
