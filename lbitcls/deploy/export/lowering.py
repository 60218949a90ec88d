"""Lowers a model for export: its layers compute the same with ONNX's QuantizeLinear and DequantizeLinear.

    x -> [with thresholds (N2UQ, APoT): the number of those below x, or the level of that number, times the scale] ->
         Clip (to a grid that is narrower than its container) -> QuantizeLinear -> DequantizeLinear ─┐
    integer weights (an initializer) -> DequantizeLinear, a scale for each output channel ───────────┴ layer -> Add

The bias is a separate Add: as the layer's bias, engines would round it to whole steps of the low-bit scale.

A lowered layer is still the quantized layer; only its computation is replaced. Hooks, global ones included, find its
class, its parameters and its quantizers. Outside of a trace it computes in PyTorch what the exported model computes, up
to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.deploy.export.residuals import carried_outputs
from lbitcls.deploy.targets.base import LayerFacts
from lbitcls.quant.computed_weights import plain_copy
from lbitcls.quant.kernels.piecewise import steps_of
from lbitcls.quant.layers import LAYER_KINDS, QuantConv2d, QuantLayer
from lbitcls.quant.quantized_sums import QuantAdd, quantized_additions
from lbitcls.quant.quantizer import NotInitializedError, Quantizer, is_active
from lbitcls.quant.spec import QParams, along
from lbitcls.utils.errors import CheckpointError, ConfigError

CONTAINERS = {"uint8": (0, 255), "int8": (-128, 127)}
_COMPUTING = ("forward", "apply_quantized", "_quantized_weight", "_make_quantized_weight", "_conv_forward")
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


class LoweredInput(nn.Module):
    """Clip, QuantizeLinear and DequantizeLinear on the grid of an input quantizer; the result for NaN is undefined.

    Args:
        qparams: Per-tensor grid.
        container: Integer type of the quantized values; None: see `container_of`.
    """

    scale: Tensor
    zero_point: Tensor
    thresholds: Tensor | None

    def __init__(self, qparams: QParams, container: str | None = None) -> None:
        super().__init__()
        self.container = container or container_of(qparams)
        self.register_buffer("scale", qparams.scale.detach().float().reshape(()))
        self.register_buffer("zero_point", qparams.zero_point.to(_DTYPES[self.container]).reshape(()))
        self.register_buffer("thresholds", None if qparams.thresholds is None else qparams.thresholds.float())
        self.levels = qparams.magnitudes
        self.signed = qparams.signed
        ends = torch.tensor([qparams.quant_min, qparams.quant_max]) - qparams.zero_point.cpu().reshape(())
        low, high = (ends * self.scale.cpu()).tolist()
        self.bounds = None if (qparams.quant_min, qparams.quant_max) == CONTAINERS[self.container] else (low, high)

    def forward(self, x: Tensor) -> Tensor:
        """Fake quantize `x`, of any shape."""
        if self.thresholds is not None:
            x = steps_of(x, self.thresholds, self.signed, self.levels) * self.scale
        if self.bounds is not None:
            x = torch.clamp(x, *self.bounds)
        if not torch.compiler.is_exporting():
            zero = self.zero_point.float()
            low, high = CONTAINERS[self.container]
            return (((x / self.scale).round() + zero).clamp(low, high) - zero) * self.scale
        emit, grid = torch.onnx.ops.symbolic, (self.scale, self.zero_point)
        integers = emit("QuantizeLinear", (x, *grid), dtype=self.zero_point.dtype, shape=x.shape)
        return emit("DequantizeLinear", (integers, *grid), dtype=torch.float32, shape=x.shape)


def lower(model: nn.Module, container: str | None = None) -> nn.Module:
    """Return a copy of `model` whose quantized layers compute as the exported model does: eval mode, CPU, float32.

    Args:
        model: Quantized or float model.
        container: Integer type of all quantized inputs; None: `uint8` if no integer is negative, else `int8`.

    Raises:
        ConfigError: Layers cannot be expressed in ONNX; names each of them and what to do.
        NotInitializedError: A quantizer never saw data.
    """
    check_expressible(model)
    with torch.no_grad():
        lowered = plain_copy(model)
        for _, hook in carried_outputs(lowered):
            if isinstance(hook.quantizer, Quantizer):
                hook.quantizer = LoweredInput(hook.quantizer.qparams(), container)
        for _, addition in quantized_additions(lowered):
            _lower_addition(addition, container)
        layers = {id(m): _lower_layer(m, container) for m in lowered.modules() if isinstance(m, QuantLayer)}
        if isinstance(lowered, QuantLayer):
            return layers[id(lowered)]
        for name, module in list(lowered.named_modules(remove_duplicate=False)):
            if layers.get(id(module), module) is not module:
                lowered.set_submodule(name, layers[id(module)])
    return lowered.eval()


def _lower_addition(addition: QuantAdd, container: str | None) -> None:
    """Replace the quantizers of an addition's operands; a layer that shares one keeps it."""
    for name, quantizer in list(addition.quantizers()):
        if isinstance(quantizer, Quantizer):
            on = quantizer.is_enabled
            setattr(addition, name, LoweredInput(quantizer.qparams(), container) if on else nn.Identity())


def _lower_layer(layer: QuantLayer, container: str | None) -> nn.Module:
    """Lower the quantized layer in place and return it; return the float layer if nothing in it is quantized."""
    if is_active(layer.weight_quantizer):
        _compute_on_integers(layer, container)
    elif is_active(layer.input_quantizer):
        _quantize_input(layer, container)
    else:
        return layer.to_float()
    return layer


def _compute_on_integers(layer: Any, container: str | None) -> None:
    """Give a layer integer weights, as the buffers `codes`, `scale` and `zero_point`, and its bias in an Add.

    The scales include a folded BatchNorm's factor, so they may be negative here: `passes.graph.settle_signs` moves the
    signs into the integers once all factors are known.
    """
    quantizer, weight, axis = layer.weight_quantizer, layer.weight_to_quantize().detach(), layer.weight_channel_axis
    qparams = quantizer.qparams(weight)
    integers = quantizer.to_integer(weight).to(weight_dtype(qparams))
    scales = qparams.scale.detach().double().expand(integers.shape[axis]).clone()
    factor = layer.fold_factor() if isinstance(layer, QuantConv2d) else None
    scales = scales if factor is None else scales / factor.detach().double()
    codes = _hold(layer, "codes", integers)
    scale = _hold(layer, "scale", scales.float())
    zero_point = _hold(layer, "zero_point", torch.zeros(len(scales), dtype=integers.dtype))
    to_grid = _lowered_input(layer, container)
    trailing = 0 if isinstance(layer, nn.Linear) else integers.dim() - 2  # axes of the output behind the channels

    def forward(input: Tensor, output_size: list[int] | None = None) -> Tensor:
        stored = getattr(layer, codes), getattr(layer, scale), getattr(layer, zero_point)
        y = _operation(layer, to_grid(input), _dequantized(*stored, axis), output_size)
        return y if layer.bias is None else y + layer.bias.view(-1, *[1] * trailing)

    layer.forward = forward


def _quantize_input(layer: Any, container: str | None) -> None:
    """Quantize a layer's input and keep its weight float."""
    to_grid = _lowered_input(layer, container)

    def forward(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return layer.float_type.forward(layer, to_grid(input), *args, **kwargs)

    layer.forward = forward


def _lowered_input(layer: QuantLayer, container: str | None) -> Callable[[Tensor], Tensor]:
    """Add a child `input` that replaces the layer's input quantizer, and return it; the identity if that is off."""
    quantizer = layer.input_quantizer
    if quantizer is None or not quantizer.is_enabled:
        return lambda x: x
    name = _free_name(layer, "input")
    layer.add_module(name, LoweredInput(quantizer.qparams(), container))
    return lambda x: getattr(layer, name)(x)


def _hold(layer: nn.Module, name: str, value: Tensor) -> str:
    """Register a buffer in a layer; return its name, which becomes a constant's name in the exported model."""
    name = _free_name(layer, name)
    layer.register_buffer(name, value)
    return name


def _free_name(layer: nn.Module, name: str) -> str:
    """Return `name`, with underscores appended while the layer has an attribute of that name."""
    while hasattr(layer, name):
        name += "_"
    return name


def _dequantized(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    if not torch.compiler.is_exporting():
        return codes.float() * along(scale, codes.dim(), axis)
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (codes, scale, zero_point), attrs={"axis": axis}, dtype=torch.float32, shape=codes.shape
    )


def _operation(layer: Any, x: Tensor, weight: Tensor, output_size: list[int] | None) -> Tensor:
    """Apply the layer's operation with `weight`, without the bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    if not isinstance(layer, nn.ConvTranspose2d):
        return layer._conv_forward(x, weight, None)
    stride, padding, dilation, kernel = (
        [int(v) for v in values] for values in (layer.stride, layer.padding, layer.dilation, layer.kernel_size)
    )
    extra = layer._output_padding(x, output_size, stride, padding, kernel, 2, dilation)
    return F.conv_transpose2d(x, weight, None, stride, padding, extra, layer.groups, dilation)


def check_finite(model: nn.Module) -> None:
    """Raise `CheckpointError` if a parameter, a running statistic or a quantizer's state is not finite."""
    for name, module in model.named_modules():
        stateful = isinstance(module, (Quantizer, nn.modules.batchnorm._NormBase))
        buffers = module._buffers if stateful else {}  # others may contain infinities on purpose: attention masks
        for key, tensor in (*module._parameters.items(), *buffers.items()):
            if tensor is not None and not tensor.detach().isfinite().all():
                raise CheckpointError(
                    f"{f'{name}.{key}'.lstrip('.')} contains NaN or infinite values, so the exported model would not "
                    "work: the weights come from a diverged run, or the calibration saw such data. Export another "
                    "checkpoint."
                )


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """Yield the name and layer of each layer whose weight or input is quantized, each layer once."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer) and (is_active(module.weight_quantizer) or is_active(module.input_quantizer)):
            yield name, module


def layer_facts(model: nn.Module) -> list[LayerFacts]:
    """Return the facts that a target gets about each quantized layer, before it chooses anything."""
    return [_facts(name, layer) for name, layer in quantized_layers(model)]


def addition_facts(model: nn.Module) -> list[LayerFacts]:
    """Return the facts about each quantized operand of an addition."""
    return [
        _operand_facts(f"{name}.{operand}", quantizer)
        for name, addition in quantized_additions(model)
        for operand, quantizer in addition.quantizers()
        if isinstance(quantizer, Quantizer) and is_active(quantizer)
    ]


def _operand_facts(name: str, quantizer: Quantizer) -> LayerFacts:
    grid = quantizer.qparams()
    return LayerFacts(
        name=name,
        kind="Add",
        method=type(quantizer).__name__,
        weight_bits=None,
        input_bits=quantizer.num_bits,
        container=container_of(grid),
        weight_range=None,
        input_range=(grid.quant_min, grid.quant_max),
        zero_point=int(grid.zero_point),
    )


def _facts(name: str, layer: QuantLayer) -> LayerFacts:
    weight, inputs = _grid(layer, "weight"), _grid(layer, "input")
    return LayerFacts(
        name=name,
        kind=layer.float_type.__name__,
        method=layer.method,
        weight_bits=None if layer.weight_quantizer is None or weight is None else layer.weight_quantizer.num_bits,
        input_bits=None if layer.input_quantizer is None or inputs is None else layer.input_quantizer.num_bits,
        container=None if inputs is None else container_of(inputs),
        weight_range=None if weight is None else (weight.quant_min, weight.quant_max),
        input_range=None if inputs is None else (inputs.quant_min, inputs.quant_max),
        zero_point=None if inputs is None else int(inputs.zero_point),
    )


def _grid(layer: QuantLayer, role: str) -> QParams | None:
    """Return the grid of a layer's weight or input; None if it is float."""
    quantizer = layer.weight_quantizer if role == "weight" else layer.input_quantizer
    if quantizer is None or not quantizer.is_enabled:
        return None
    return quantizer.qparams(layer.weight_to_quantize() if role == "weight" else None)


def _own_computation(layer: QuantLayer) -> list[str]:
    """Return the names of the methods that a layer overrides, so that it computes differently from its kind."""
    kind = next((cls for cls in type(layer).__mro__ if cls in LAYER_KINDS.values()), QuantLayer)
    return [n for n in _COMPUTING if n in vars(layer) or getattr(type(layer), n, None) is not getattr(kind, n, None)]


def container_of(qparams: QParams) -> str:
    """Return the integer type of a quantized input: `uint8` if no integer is negative, else `int8`."""
    return "int8" if qparams.quant_min < 0 else "uint8"


def fits(qparams: QParams) -> bool:
    """Return True if a quantized input's integers lie within its container."""
    low, high = CONTAINERS[container_of(qparams)]
    return low <= qparams.quant_min and qparams.quant_max <= high


def weight_dtype(qparams: QParams) -> torch.dtype:
    """Return the integer type of a quantized weight: int8, or int16 for larger integers."""
    largest = max(-qparams.quant_min, qparams.quant_max)
    return torch.int8 if largest <= 128 and qparams.quant_max <= 127 else torch.int16


def check_expressible(model: nn.Module) -> None:
    """Raise an error if a value is not finite, or if a quantizer has no ONNX form or is not initialized."""
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    broken += [name for name, value in model.named_buffers() if value.isnan().any()]  # a range without data is infinite
    if broken:
        raise CheckpointError(
            f"these tensors are not all finite, so they cannot be quantized: {', '.join(broken)}. The training "
            "diverged; export an earlier checkpoint."
        )
    own = [
        f"{name} ({type(layer).__name__}: {', '.join(found)})"
        for name, layer in quantized_layers(model)
        if (found := _own_computation(layer))
    ]
    if own:
        raise ConfigError(
            f"these layers override their computation, which the exported model would lack: {'; '.join(own)}. Compute "
            "the weight in weight_to_quantize or by torch.nn.utils.parametrize, and change inputs or outputs in a "
            "module or a hook."
        )
    for name, addition in quantized_additions(model):
        for _, operand in addition.quantizers():
            _require_initialized(name, operand)
    wide = []
    for name, layer in quantized_layers(model):
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            _require_initialized(name, quantizer)
        inputs = _grid(layer, "input")
        if inputs is not None and not fits(inputs):
            wide.append(f"{name} ({layer.method}, {inputs.quant_min} to {inputs.quant_max})")
    if wide:
        raise ConfigError(
            f"the inputs of these layers have integers beyond 8 bits: {', '.join(wide)}. Train with fewer bits (APoT: "
            "up to 5 without a sign, 6 with one), with another method, such as UQ (APoT with power=False) or LSQ, or "
            "with float inputs (quant_activation=False)."
        )


def _require_initialized(name: str, quantizer: nn.Module | None) -> None:
    if isinstance(quantizer, Quantizer) and is_active(quantizer) and not quantizer.is_initialized:
        raise NotInitializedError(
            f"the {quantizer.role} quantizer of '{name}' never saw data, so it has no scale to export: load "
            "the checkpoint of a quantized model, or calibrate first."
        )
