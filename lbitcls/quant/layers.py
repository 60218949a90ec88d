"""Quantized layers: a float layer with a quantizer for its weight and one for its input.

A layer says where quantizers are used; they say what the integers are. `LAYER_KINDS` names the float types that can
be quantized.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.quant.kernels.recompute import recomputing, worthwhile
from lbitcls.quant.quantizer import Quantizer
from lbitcls.utils.errors import ConfigError


class QuantLayer(nn.Module):
    """What quantized layers share; each also is a subclass of its float layer.

    Attributes:
        weight_quantizer: quantizes the weight; None: float.
        input_quantizer: quantizes the layer's input; None: float.
        method: name of the method, as plans and exporters report it.
        weight_channel_axis: the axis of the weight that holds the output channels.
    """

    float_type: ClassVar[type[nn.Module]]
    weight_channel_axis: ClassVar[int] = 0
    weight: Tensor
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    method: str

    @classmethod
    def from_float(
        cls,
        layer: nn.Module,
        weight_quantizer: Quantizer | None,
        input_quantizer: Quantizer | None,
        method: str = "",
    ) -> Any:
        """The quantized form of `layer`, which keeps its parameters, hooks and mode (the same tensors, no copies)."""
        quantized = _recast(layer, cls)
        for name, quantizer in (("weight_quantizer", weight_quantizer), ("input_quantizer", input_quantizer)):
            quantized.register_module(
                name, quantizer.to(next(layer.parameters()).device) if quantizer is not None else None
            )
            if quantizer is not None:
                quantizer.train(layer.training)
        quantized.method = method
        return quantized

    def to_float(self) -> nn.Module:
        """The float layer again, with the same parameters."""
        layer = _recast(self, self.float_type)
        del layer._modules["weight_quantizer"], layer._modules["input_quantizer"], layer.__dict__["method"]
        return layer

    def apply_quantized(self, x: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`operation(input, weight)` on the quantized input and weight."""
        quantized = [_quantize(self.input_quantizer, x), _quantize(self.weight_quantizer, self.weight)]
        values = [value for value, _ in quantized]
        if worthwhile():
            return recomputing(lambda: operation(*values), *quantized)
        return operation(*values)


def _quantize(quantizer: Quantizer | None, x: Tensor) -> tuple[Tensor, Callable[[], Tensor] | None]:
    """`x` quantized, and how to quantize it again; no way where nothing is quantized."""
    if quantizer is None or not quantizer.is_enabled:
        return x if quantizer is None else quantizer(x), None
    return quantizer(x), lambda: quantizer.forward(x)


def _recast(layer: nn.Module, target: type[nn.Module]) -> Any:
    """A module of another class with the state of `layer`: the same tensors in containers of its own."""
    new = target.__new__(target)
    new.__dict__ = {k: copy.copy(v) if k.startswith("_") else v for k, v in layer.__dict__.items()}
    return new


class QuantConv1d(QuantLayer, nn.Conv1d):
    """Quantized `Conv1d`."""

    float_type = nn.Conv1d

    def forward(self, x: Tensor) -> Tensor:
        """Input (N, C, L) to (N, O, L')."""
        return self.apply_quantized(x, lambda xq, wq: self._conv_forward(xq, wq, self.bias))


class QuantConv2d(QuantLayer, nn.Conv2d):
    """Quantized `Conv2d`."""

    float_type = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Input (N, C, H, W) to (N, O, H', W')."""
        return self.apply_quantized(x, lambda xq, wq: self._conv_forward(xq, wq, self.bias))


class QuantLinear(QuantLayer, nn.Linear):
    """Quantized `Linear`."""

    float_type = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., C) to (..., O)."""
        return self.apply_quantized(x, lambda xq, wq: F.linear(xq, wq, self.bias))


LAYER_KINDS: dict[str, type[QuantLayer]] = {
    "Conv2d": QuantConv2d,
    "Linear": QuantLinear,
    "Conv1d": QuantConv1d,
}
"""Float layer type, by its name, to the quantized layer that replaces it."""

ENTRY_SUFFIXES: dict[str, str] = {"Conv2d": "Conv", "Linear": "Linear", "Conv1d": "Conv1d"}
"""What a layer kind adds to a method's name in a config: `LSQ` + `Conv`."""


def num_channels(layer: nn.Module, kind: type[QuantLayer]) -> int:
    """Number of output channels of a float layer's weight."""
    return int(layer.weight.shape[kind.weight_channel_axis])  # type: ignore[index]


def kind_of(layer: nn.Module) -> str | None:
    """Name of the layer kind of a float layer, by its exact type; None when there is none."""
    name = type(layer).__name__
    return name if name in LAYER_KINDS and LAYER_KINDS[name].float_type is type(layer) else None


def quantized_kind(name: str) -> type[QuantLayer]:
    """The quantized layer for a kind's name; `ConfigError` for an unknown one."""
    if name not in LAYER_KINDS:
        raise ConfigError(f"'{name}' is no kind of layer that can be quantized; they are {', '.join(LAYER_KINDS)}.")
    return LAYER_KINDS[name]
