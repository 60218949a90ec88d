"""Quantized layers: a float layer with a quantizer for its weight and one for its input.

A layer defines where quantizers are used; the quantizers define the integers. `LAYER_KINDS` lists the float types
that can be quantized.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lbitcls.quant.integer_layers import convolve_integers, multiplies_integers, multiply_integers
from lbitcls.quant.kernels.recompute import recomputing, worthwhile
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.weight_cache import WeightCache, keeping_pays, settings_of, tensors_of
from lbitcls.utils.errors import ConfigError

Quantized = tuple[Tensor, Callable[[], Tensor] | None]
SMALLEST_FACTOR = 1e-8
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Attributes in which PyTorch keeps a module's forward hooks; a layer's replacement inherits all of them."""
SMALLEST_RECOMPUTED = 2**16  # elements; for fewer, the call costs more than the memory saved is worth


class QuantLayer(nn.Module):
    """Base class of quantized layers; each is also a subclass of its float layer.

    In eval, without gradients, on the CPU, the weight is quantized once, and again only when its values change
    (`weight_cache`).

    Attributes:
        weight_quantizer: Quantizer of the weight; None: float.
        input_quantizer: Quantizer of the layer's input; None: float.
        method: Name of the method, as plans and exporters report it.
        bypassed: True if a watched forward pass bypassed the layer, so that it is unused or computes in float
            (`bypass`).
        weight_channel_axis: Axis of the weight's output channels.
    """

    float_type: ClassVar[type[nn.Module]]
    weight_channel_axis: ClassVar[int] = 0
    weight: Tensor
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    method: str
    bypassed: bool = False
    _weight_cache: WeightCache

    @classmethod
    def from_float(
        cls,
        layer: nn.Module,
        weight_quantizer: Quantizer | None,
        input_quantizer: Quantizer | None,
        method: str = "",
    ) -> Any:
        """Return the quantized form of `layer`, with its parameters, hooks and mode (the same tensors, no copies)."""
        quantized = _recast(layer, cls)
        for name, quantizer in (("weight_quantizer", weight_quantizer), ("input_quantizer", input_quantizer)):
            quantized.register_module(
                name, quantizer.to(next(layer.parameters()).device) if quantizer is not None else None
            )
            if quantizer is not None:
                quantizer.train(layer.training)
        quantized.method = method
        quantized._weight_cache = WeightCache()
        return quantized

    def to_float(self) -> nn.Module:
        """Return the float layer with the same parameters."""
        layer = _recast(self, self.float_type)
        del layer._modules["weight_quantizer"], layer._modules["input_quantizer"], layer.__dict__["method"]
        del layer.__dict__["_weight_cache"]
        layer.__dict__.pop("bypassed", None)
        return layer

    def train(self, mode: bool = True) -> Any:
        """Set the mode, and drop the quantized weight cached in eval."""
        self._weight_cache.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._weight_cache.clear()
        return super()._apply(*args, **kwargs)

    def weight_to_quantize(self) -> Tensor:
        """Return the float tensor that the weight quantizer receives."""
        return self.weight

    @torch.no_grad()
    def fill_weight(self, value: Tensor) -> None:
        """Fill the weight in place, so that `weight_to_quantize` returns `value`, of its shape."""
        self.weight.copy_(value)

    def apply_quantized(self, x: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return `operation(input, weight)` for the quantized input and weight."""
        quantized = [_quantize(self.input_quantizer, x), self._quantized_weight()]
        values = [value for value, _ in quantized]
        if worthwhile():
            return recomputing(lambda: operation(*values), *quantized)
        return operation(*values)

    def _quantized_weight(self) -> Quantized:
        quantizer = self.weight_quantizer
        if not torch.compiler.is_compiling() and quantizer is not None:
            weight = self.weight_to_quantize()
            if keeping_pays(self, weight) and quantizer.is_enabled and not _watched(quantizer):
                make = partial(self._make_quantized_weight, quantizer, weight)
                sources = (weight, *tensors_of(quantizer))
                return self._weight_cache.get(settings_of(quantizer), sources, make), None
            self._weight_cache.clear()
            return _quantize(quantizer, weight)
        return _quantize(quantizer, self.weight_to_quantize())

    def _make_quantized_weight(self, quantizer: Quantizer, weight: Tensor) -> Tensor:
        return quantizer(weight)


def _watched(module: nn.Module) -> bool:
    """Return True if hooks observe the calls of `module`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _quantize(quantizer: Quantizer | None, x: Tensor) -> Quantized:
    """Return `x` quantized, and a function that quantizes it again (None if nothing is quantized)."""
    if quantizer is None:
        return x, None
    y = quantizer(x)
    return y, quantizer.take_recipe() if x.numel() >= SMALLEST_RECOMPUTED else None


def _recast(layer: nn.Module, target: type[nn.Module]) -> Any:
    """Return a module of another class with the state of `layer`: the same tensors in new containers."""
    if parametrize.is_parametrized(layer):  # its class computes its tensors
        parametrizations: Any = layer.parametrizations
        names = (*parametrizations, "__deepcopy__", "__getstate__")
        computing = {name: value for name, value in vars(type(layer)).items() if name in names}
        target = type(f"Parametrized{target.__name__}", (target,), computing)
    new = target.__new__(target)
    new.__dict__ = {k: copy.copy(v) if k.startswith("_") else v for k, v in layer.__dict__.items()}
    return new


class QuantConv1d(QuantLayer, nn.Conv1d):
    """Quantized `Conv1d`."""

    float_type = nn.Conv1d

    def forward(self, input: Tensor) -> Tensor:
        """Input (N, C, L) to (N, O, L')."""
        if multiplies_integers(self, input):
            return convolve_integers(self, input, self.bias)
        return self.apply_quantized(input, lambda xq, wq: self._conv_forward(xq, wq, self.bias))


class QuantConv2d(QuantLayer, nn.Conv2d):
    """Quantized `Conv2d`.

    After `fold(norm)` the layer quantizes the weight with the BatchNorm folded into it, weight · γ/σ, and divides the
    result by γ/σ again before the BatchNorm, which stays in place (PyTorch's ConvBn QAT, Jacob et al.,
    arXiv:1712.05877, section 3.2, with running statistics). In float this changes nothing.
    """

    float_type = nn.Conv2d
    folded_norm: tuple[
        nn.modules.batchnorm._BatchNorm, ...
    ] = ()  # a tuple hides the norm from this module's children and state

    def fold(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Quantize the weight with the BatchNorm that follows this layer folded into it.

        Raises:
            ConfigError: The weight is normalized: its std contains γ/σ, and σ contains 1 / std, so both would drift.
        """
        if self.weight_quantizer is not None and self.weight_quantizer.adds_norm:
            raise ConfigError("fold_bn and weight_norm exclude each other: leave one of them out.")
        self.folded_norm = (norm,)
        if self.weight_quantizer is not None:
            self.weight_quantizer.folded = True

    def fold_factor(self) -> Tensor | None:
        """Return γ/σ (O,) of the folded BatchNorm, 1 where γ is 0, or None if nothing is folded."""
        if not self.folded_norm:
            return None
        norm = self.folded_norm[0]
        if norm.running_var is None:
            return None
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return torch.where(factor.abs() < SMALLEST_FACTOR, torch.ones_like(factor), factor)

    def weight_to_quantize(self) -> Tensor:
        """Return the weight, times γ/σ if a BatchNorm is folded."""
        factor = self.fold_factor()
        return self.weight if factor is None else self.weight * factor.view(-1, 1, 1, 1)

    @torch.no_grad()
    def fill_weight(self, value: Tensor) -> None:
        """Fill the weight in place, so that `weight_to_quantize` returns `value` but for a rounding error."""
        factor = self.fold_factor()
        super().fill_weight(value if factor is None else value / factor.view(-1, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Input (N, C, H, W) to (N, O, H', W')."""
        factor = self.fold_factor()
        if factor is None:
            return self._convolve(input, self.bias)
        y = self._convolve(input, None) / factor.view(1, -1, 1, 1)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def _convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of the quantized input and weight."""
        if multiplies_integers(self, x):
            return convolve_integers(self, x, bias)
        return self.apply_quantized(x, lambda xq, wq: self._conv_forward(xq, wq, bias))


class QuantConvTranspose2d(QuantLayer, nn.ConvTranspose2d):
    """Quantized `ConvTranspose2d`."""

    float_type = nn.ConvTranspose2d
    weight_channel_axis = 1

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Input (N, C, H, W) to (N, O, H', W')."""
        stride, padding, dilation = list(self.stride), [int(p) for p in self.padding], list(self.dilation)
        kernel_size = list(self.kernel_size)
        extra = self._output_padding(input, output_size, stride, padding, kernel_size, 2, dilation)

        def operation(xq: Tensor, wq: Tensor) -> Tensor:
            return F.conv_transpose2d(xq, wq, self.bias, stride, padding, extra, self.groups, dilation)

        return self.apply_quantized(input, operation)


class QuantLinear(QuantLayer, nn.Linear):
    """Quantized `Linear`."""

    float_type = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Input (..., C) to (..., O)."""
        if multiplies_integers(self, input):
            return multiply_integers(self, input, self.bias)
        return self.apply_quantized(input, lambda xq, wq: F.linear(xq, wq, self.bias))


LAYER_KINDS: dict[str, type[QuantLayer]] = {
    "Conv2d": QuantConv2d,
    "Linear": QuantLinear,
    "Conv1d": QuantConv1d,
    "ConvTranspose2d": QuantConvTranspose2d,
}
"""Name of a float layer type → the quantized layer that replaces it."""

ENTRY_SUFFIXES: dict[str, str] = {
    "Conv2d": "Conv",
    "Linear": "Linear",
    "Conv1d": "Conv1d",
    "ConvTranspose2d": "ConvTranspose2d",
}
"""Layer kind → suffix of a method's name in a config: `LSQ` + `Conv`."""


def num_channels(layer: nn.Module, kind: type[QuantLayer]) -> int:
    """Return the number of output channels of a float layer's weight."""
    if kind.weight_channel_axis == 1 and layer.groups != 1:
        raise ConfigError(f"per_channel needs groups=1 in a {type(layer).__name__}; it has {layer.groups}.")
    weight: Any = layer.weight  # not a parameter if a hook computes it
    return weight.shape[kind.weight_channel_axis]


def kind_of(layer: nn.Module) -> str | None:
    """Return the layer kind of a float layer, by its exact type (parametrized or not), or None if it has none."""
    float_type = parametrize.type_before_parametrizations(layer)
    name = float_type.__name__
    return name if name in LAYER_KINDS and LAYER_KINDS[name].float_type is float_type else None


def quantized_kind(name: str) -> type[QuantLayer]:
    """Return the quantized layer for a kind's name; raise `ConfigError` for an unknown kind."""
    if name not in LAYER_KINDS:
        raise ConfigError(f"'{name}' is not a kind of layer that can be quantized. Known: {', '.join(LAYER_KINDS)}.")
    return LAYER_KINDS[name]
