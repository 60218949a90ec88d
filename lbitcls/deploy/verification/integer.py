"""Integer reference: the result of a quantized model whose layers compute on integers.

    codes of the input      q_x = to_integer(x),   centered: q_x - z_x      (padding with 0 is padding with z_x)
    codes of the weight     q_w = to_integer(w),   centered: q_w - z_w
    accumulator             a = Σ (q_x - z_x) · (q_w - z_w)                 exact, within int32
    result                  y = a · (s_x · s_w / f) + bias                  one multiplication for each output channel

f is the factor of a folded BatchNorm, 1 without one. Everything else (BatchNorm, ReLU, pooling, additions) is float64.

Exact: the integers are stored in float64, whose sums and products of integers are exact below 2^53 in any order of
addition; a check of the weights ensures that every accumulator stays within int32, as in the engines.

Weights have the integers that float32 decides, as in the exported model. The level to which an input value is rounded
is decided in float64, as in the fake-quantized float64 model (`verification/reference.py`), so the two differ only by
the rounding of the last multiplication. Compared with float32, values within its rounding error of the middle between
two levels may fall to the other level, here as in any engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.deploy.verification.reference import reference_model
from lbitcls.quant.layers import QuantConv1d, QuantConv2d, QuantConvTranspose2d, QuantLayer, QuantLinear
from lbitcls.quant.spec import QParams, along
from lbitcls.utils.errors import LbitclsError

LARGEST_ACCUMULATOR = 2**31 - 1
"""Largest value of an int32 accumulator."""


class AccumulatorError(LbitclsError):
    """A layer's accumulators could exceed int32."""


_KINDS = (QuantConv1d, QuantConv2d, QuantConvTranspose2d, QuantLinear)


def is_integer(layer: nn.Module) -> bool:
    """Return True if a layer computes on integers: a quantized layer whose computation is replaced.

    Its class stays the same, since hooks may check it. It has the buffers

        codes   centered integers of the weight, as float64, in the weight's shape
        step    s_x · s_w / f, the value of one unit of the accumulator; broadcasts against the output
        shift   bias, broadcasts likewise, or None

    and `largest_accumulator`, which no partial sum of the products exceeds in magnitude.
    """
    return "largest_accumulator" in vars(layer)


def _apply_integers(layer: Any, x: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return `operation(input, weight)` on the centered codes, exact, then scaled; float64."""
    zero_point = layer.input_quantizer.zero_point().to(torch.int32)
    centred = (layer.input_quantizer.to_integer(x.double()) - zero_point).double()
    # A device may convolve with a transform whose results are not integers; the nearest integer is the sum.
    y = operation(centred, layer.codes).round_().mul_(layer.step)
    return y if layer.shift is None else y.add_(layer.shift)


def integer_model(model: nn.Module) -> nn.Module:
    """Return a float64 copy of `model` whose quantized layers compute on integers; see the module's docstring.

    A layer that quantizes only its weight or only its input stays fake-quantized in float64: `layers_in_float`.

    Args:
        model: Classifier, or any module with quantized layers, whose quantizers are initialized.

    Returns:
        The copy, on the CPU in eval mode; its input is float64.

    Raises:
        NotInitializedError: A quantizer is not initialized.
        AccumulatorError: The accumulators of a layer could exceed int32.
    """
    integer = reference_model(model, torch.float64)
    for name, layer in integer.named_modules():
        if isinstance(layer, QuantLayer) and _reason_for_float(layer) is None:
            _to_integer_layer(layer, name)
    return integer


def layers_in_float(model: nn.Module) -> dict[str, str]:
    """Return the quantized layers that compute in float64 in the integer reference, by name, with the reason."""
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantLayer))
    reasons = {name: _reason_for_float(layer) for name, layer in layers if not is_integer(layer)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _reason_for_float(layer: QuantLayer) -> str | None:
    if type(layer) not in _KINDS:
        return f"{type(layer).__name__} has no integer form"
    for role, quantizer in (("weight", layer.weight_quantizer), ("input", layer.input_quantizer)):
        if quantizer is None or not quantizer.is_enabled:
            return f"its {role} is float"
    return None


@torch.no_grad()
def _to_integer_layer(layer: QuantLayer, name: str) -> None:
    """Convert a quantized float64 layer to its integer form, in place, so that the model's references stay valid."""
    assert layer.weight_quantizer is not None and layer.input_quantizer is not None
    weight = layer.weight_to_quantize()
    grid, of_input = layer.weight_quantizer.qparams(weight), layer.input_quantizer.qparams()
    codes = layer.weight_quantizer.to_integer(weight) - along(grid.zero_point, weight.dim(), grid.channel_axis)
    step, bias = of_input.scale * grid.scale, layer._parameters["bias"]
    if isinstance(layer, QuantConv2d):
        factor = layer.fold_factor()
        step = step if factor is None else step / factor
        layer.folded_norm = ()
    spatial = weight.dim() - 2  # axes of the output behind the channels
    layer._parameters["bias"] = None
    attributes: dict[str, Any] = vars(layer)
    attributes["apply_quantized"] = partial(_apply_integers, layer)
    layer.register_buffer("codes", codes.double())
    layer.register_buffer("step", _before_axes(step, spatial))
    layer.register_buffer("shift", None if bias is None else _before_axes(bias.detach(), spatial))
    attributes["largest_accumulator"] = _checked_bound(codes, layer, of_input, name)


def _before_axes(values: Tensor, axes: int) -> Tensor:
    """Return values () or (C,), shaped to broadcast against (…, C, and `axes` more)."""
    return values.reshape(-1, *(1,) * axes) if values.dim() else values


def _checked_bound(codes: Tensor, layer: QuantLayer, of_input: QParams, name: str) -> int:
    zero_point = int(of_input.zero_point)
    ends = (of_input.quant_min, of_input.quant_max)
    largest_code = max(abs(end - shift) for end in ends for shift in (0, zero_point))  # centered, and as stored
    bound = int(_taps(codes, layer).abs().sum(1, dtype=torch.int64).max()) * largest_code
    if bound > LARGEST_ACCUMULATOR:
        raise AccumulatorError(
            f"{name}: a sum may reach {bound:,}, beyond the {LARGEST_ACCUMULATOR:,} of int32 accumulators; give the "
            "layer fewer bits, or leave it float."
        )
    return bound


def _taps(codes: Tensor, layer: QuantLayer) -> Tensor:
    """Return the weight's codes as rows, each with the codes that contribute to one output channel."""
    if layer.weight_channel_axis == 0:
        return codes.flatten(1)
    assert isinstance(layer, nn.ConvTranspose2d)  # the only kind whose output channels are not the weight's first axis
    groups = layer.groups
    by_group = codes.reshape(groups, codes.shape[0] // groups, codes.shape[1], -1)
    return by_group.movedim(2, 1).flatten(0, 1).flatten(1)


def largest_accumulator(model: nn.Module) -> tuple[str, int] | None:
    """Return the layer of `integer_model` with the largest possible sum, and that sum; None without integer layers."""
    bounds = {name: vars(m)["largest_accumulator"] for name, m in model.named_modules() if is_integer(m)}
    return max(bounds.items(), key=lambda item: item[1]) if bounds else None
