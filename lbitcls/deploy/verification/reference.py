"""Trained model evaluated in another precision: its float64 form is the yardstick of verification.

The integers of a weight and the grid of an input are decided in float32, as in training and in the exported model.
Decided again in float64, some would differ, and not by chance: the largest weight of a min-max grid lies exactly
between two levels. That would be another model, whose distance measures nothing. So the float64 form computes on the
float32 grids; only the level to which an input value is rounded is decided in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant import functional
from lbitcls.quant.calibration import named_quantizers
from lbitcls.quant.computed_weights import plain_copy
from lbitcls.quant.kernels.piecewise import steps_of
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantized_sums import quantized_additions
from lbitcls.quant.quantizer import NotInitializedError, Quantizer
from lbitcls.quant.spec import QParams, along


class FixedQuantizer(Quantizer):
    """Quantizer on the grid that another quantizer decided; for a weight, also with the integers that it decided.

    Args:
        quantizer: Initialized float32 quantizer.
        weight: Input of a weight's quantizer; None: the quantizer is an input's.
    """

    lowest_bits = 1
    needs_data = False

    scale: Tensor
    zero: Tensor
    integers: Tensor | None
    ends: Tensor | None

    def __init__(self, quantizer: Quantizer, weight: Tensor | None = None) -> None:
        qparams = quantizer.qparams(weight)
        self._range = qparams.quant_min, qparams.quant_max
        super().__init__(quantizer.num_bits, quantizer.role, quantizer.signed, quantizer.num_channels)
        self.channel_axis = quantizer.channel_axis
        self._levels = qparams.levels
        self.register_buffer("ends", qparams.thresholds)
        self.register_buffer("scale", qparams.scale)
        self.register_buffer("zero", qparams.zero_point)
        self.register_buffer("integers", None if weight is None else quantizer.to_integer(weight))

    def integer_range(self) -> tuple[int, int]:
        return self._range

    def levels(self) -> Tensor | None:
        return self._levels

    def thresholds(self) -> Tensor | None:
        return self.ends

    def zero_point(self) -> Tensor:
        return self.zero.to(self.scale.dtype)

    def qparams(self, x: Tensor | None = None) -> QParams:
        low, high = self._range
        return QParams(self.scale, self.zero, low, high, self.channel_axis, self._levels, self.ends)

    def to_integer(self, x: Tensor) -> Tensor:
        if self.integers is not None:
            return self.integers
        if self.ends is not None:
            return steps_of(x, self.ends, self.signed, self.qparams().magnitudes).to(torch.int32)
        zero = along(self.zero_point(), x.dim(), self.channel_axis)
        steps = functional.to_steps(x, along(self.scale, x.dim(), self.channel_axis), self.low - zero, self.high - zero)
        return (steps + zero).to(torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """Fake quantize `x`."""
        return self.qparams().dequantize(self.to_integer(x))


def reference_model(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of `model` in eval mode on the CPU that computes in `dtype`, on the grids that float32 decides.

    Args:
        model: Any module, with or without quantized layers.
        dtype: `torch.float32`, the model unchanged, or `torch.float64`.

    Raises:
        ConfigError: Something in the model cannot be copied.
        NotInitializedError: An enabled quantizer is not initialized.
    """
    waiting = [name for name, q in named_quantizers(model) if q.is_enabled and not q.is_initialized]
    if waiting:
        others = f" and {len(waiting) - 1} others" if waiting[1:] else ""
        raise NotInitializedError(
            f"{waiting[0]}{others} never saw data, so they have no scale: call lbitcls.quant.calibrate(model, "
            "batches), or load the checkpoint of a quantized model."
        )
    reference = plain_copy(model).requires_grad_(False)
    if dtype is not torch.float32:
        backbone: Any = getattr(reference, "backbone", None)
        if hasattr(backbone, "computed_otherwise"):  # already integer, so another precision means nothing
            reference.backbone = backbone.computed_otherwise()
        for layer in (m for m in reference.modules() if isinstance(m, QuantLayer)):
            _fix_grids(layer)
        for _, addition in quantized_additions(reference):
            for name, quantizer in list(addition.quantizers()):
                if isinstance(quantizer, Quantizer) and quantizer.is_enabled:
                    setattr(addition, name, FixedQuantizer(quantizer))
    return reference.to(dtype)


@torch.no_grad()
def _fix_grids(layer: QuantLayer) -> None:
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    if weight is not None and weight.is_enabled:
        layer.weight_quantizer = FixedQuantizer(weight, layer.weight_to_quantize())
    if inputs is not None and inputs.is_enabled:
        layer.input_quantizer = FixedQuantizer(inputs)
