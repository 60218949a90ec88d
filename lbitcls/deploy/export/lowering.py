"""Quantized layers as they ship: the same computation, written with ONNX's QuantizeLinear and DequantizeLinear.

    x -> Clip (to a grid that is narrower than its container) -> QuantizeLinear -> DequantizeLinear ─┐
    integer weights (an initializer) -> DequantizeLinear, a scale for each output channel ───────────┴ layer -> Add

The bias is an Add of its own: as the layer's bias, engines round it to whole steps of the low-bit scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.deploy.export.residuals import carried_outputs
from lbitcls.quant.computed_weights import plain_copy
from lbitcls.quant.layers import HOOKS, LAYER_KINDS, QuantConv2d, QuantLayer
from lbitcls.quant.quantizer import NotInitializedError, Quantizer
from lbitcls.quant.spec import QParams
from lbitcls.utils.errors import CheckpointError, ConfigError

CONTAINERS = {"uint8": (0, 255), "int8": (-128, 127)}
_COMPUTING = ("forward", "apply_quantized", "_quantized_weight", "_make_quantized_weight", "_conv_forward")
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


@dataclass(frozen=True)
class LayerFacts:
    """What a file says of a quantized layer.

    Attributes:
        name: full name in the model.
        kind: float layer type.
        method: name of the method.
        weight_bits: bits of the weight; None: float.
        input_bits: bits of the input; None: float.
        container: type that holds the input's integers, `uint8` or `int8`; None: the input is float.
        signed: whether the input's grid has negative integers.
    """

    name: str
    kind: str
    method: str
    weight_bits: int | None
    input_bits: int | None
    container: str | None
    signed: bool


class ShippedInput(nn.Module):
    """Clip, QuantizeLinear and DequantizeLinear on the grid of an input quantizer; NaN stays undefined.

    Args:
        qparams: the grid, per tensor.
        container: the type that holds its integers; None: see `container_of`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, qparams: QParams, container: str | None = None) -> None:
        super().__init__()
        self.container = container or container_of(qparams)
        self.register_buffer("scale", qparams.scale.detach().float().reshape(()))
        self.register_buffer("zero_point", qparams.zero_point.to(_DTYPES[self.container]).reshape(()))
        ends = torch.tensor([qparams.quant_min, qparams.quant_max]) - qparams.zero_point.cpu().reshape(())
        low, high = (ends * self.scale.cpu()).tolist()
        self.bounds = None if (qparams.quant_min, qparams.quant_max) == CONTAINERS[self.container] else (low, high)

    def forward(self, x: Tensor) -> Tensor:
        """`x` fake quantized, in any shape."""
        if self.bounds is not None:
            x = torch.clamp(x, *self.bounds)
        emit, grid = torch.onnx.ops.symbolic, (self.scale, self.zero_point)
        integers = emit("QuantizeLinear", (x, *grid), dtype=self.zero_point.dtype, shape=x.shape)
        return emit("DequantizeLinear", (integers, *grid), dtype=torch.float32, shape=x.shape)


class _InItsPlace(nn.Module):
    """What takes a quantized layer's place, with what is done around its forward pass.

    Attributes:
        layer: its float form, of which hooks may ask what the quantized layer has.
    """

    layer: Any

    def take_hooks(self, layer: nn.Module) -> None:
        """Take over the hooks of `layer`."""
        for name in HOOKS:
            setattr(self, name, getattr(layer, name))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer" or "layer" not in self._modules:
                raise
            return getattr(self.layer, name)


class ShippedLayer(_InItsPlace):
    """A layer on integer weights, with its bias added afterwards.

    A folded BatchNorm's factor is in the scales, which may be negative here: `graph.settle_signs` moves the signs into
    the integers when all factors are known.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantLayer, container: str | None = None) -> None:
        super().__init__()
        quantizer, weight = layer.weight_quantizer, layer.weight_to_quantize().detach()
        assert quantizer is not None
        qparams = quantizer.qparams(weight)
        codes, axis = quantizer.to_integer(weight), layer.weight_channel_axis
        bias: Any = layer.bias
        scale = qparams.scale.detach().double().expand(codes.shape[axis]).clone()
        factor = layer.fold_factor() if isinstance(layer, QuantConv2d) else None
        scale = scale if factor is None else scale / factor.detach().double()
        self.axis, self.input = axis, shipped_input(layer, container)
        self.register_buffer("codes", codes.to(weight_dtype(qparams)))
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=self.codes.dtype))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.layer = layer.to_float()  # with its weight, for hooks, and for a model that also reads it
        self.take_hooks(layer)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """What the quantized layer does."""
        weight = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.codes, self.scale, self.zero_point),
            attrs={"axis": self.axis},
            dtype=torch.float32,
            shape=self.codes.shape,
        )
        y = self._operation(self.input(input), weight, output_size)
        return y if self.bias is None else y + self.bias.view(-1, *[1] * self._trailing_axes)

    @property
    def _trailing_axes(self) -> int:
        """Axes of the output after its channels."""
        return 0 if isinstance(self.layer, nn.Linear) else self.codes.dim() - 2

    def _operation(self, x: Tensor, weight: Tensor, output_size: list[int] | None) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight)
        if not isinstance(layer, nn.ConvTranspose2d):
            return layer._conv_forward(x, weight, None)
        stride, padding, dilation, kernel = (
            [int(v) for v in values] for values in (layer.stride, layer.padding, layer.dilation, layer.kernel_size)
        )
        extra = layer._output_padding(x, output_size, stride, padding, kernel, 2, dilation)
        return F.conv_transpose2d(x, weight, None, stride, padding, extra, layer.groups, dilation)


class QuantizedInput(_InItsPlace):
    """A layer with float weights whose input alone is quantized."""

    def __init__(self, layer: QuantLayer, container: str | None = None) -> None:
        super().__init__()
        self.input = shipped_input(layer, container)
        self.layer = layer.to_float()
        self.take_hooks(layer)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the quantized layer does."""
        return self.layer.forward(
            self.input(input), *args, **kwargs
        )  # no call: in the graph the layer has this module's name


def ship(model: nn.Module, container: str | None = None) -> nn.Module:
    """A copy of `model` in eval, on the CPU and in float32, whose quantized layers are as they ship.

    Args:
        model: quantized or float.
        container: the type that holds all inputs' integers; None: `uint8` where no integer is negative, else `int8`.

    Raises:
        ConfigError: a layer cannot be expressed; names every such layer and what to do.
        NotInitializedError: a quantizer never saw data.
    """
    check_expressible(model)
    with torch.no_grad():
        shipped = plain_copy(model)
        for _, hook in carried_outputs(shipped):
            if isinstance(hook.quantizer, Quantizer):
                hook.quantizer = ShippedInput(hook.quantizer.qparams(), container)
        layers = {id(m): shipped_layer(m, container) for m in shipped.modules() if isinstance(m, QuantLayer)}
        if isinstance(shipped, QuantLayer):
            return layers[id(shipped)]
        for name, module in list(shipped.named_modules(remove_duplicate=False)):
            if id(module) in layers:
                shipped.set_submodule(name, layers[id(module)])
    return shipped.eval()


def check_finite(model: nn.Module) -> None:
    """Raise `CheckpointError` where a parameter, a running statistic or a quantizer's state is not finite."""
    for name, module in model.named_modules():
        stateful = isinstance(module, (Quantizer, nn.modules.batchnorm._NormBase))
        buffers = module._buffers if stateful else {}  # others may hold infinities on purpose: an attention's mask
        for key, tensor in (*module._parameters.items(), *buffers.items()):
            if tensor is not None and not tensor.detach().isfinite().all():
                raise CheckpointError(
                    f"{f'{name}.{key}'.lstrip('.')} holds values that are NaN or infinite, so the file would not work: "
                    "the weights come from a run that diverged, or the calibration saw such data. Give another "
                    "checkpoint."
                )


def shipped_layer(layer: QuantLayer, container: str | None = None) -> nn.Module:
    """A quantized layer in the form that ships; where nothing of it is quantized, the float layer."""
    if active(layer.weight_quantizer):
        return ShippedLayer(layer, container)
    return QuantizedInput(layer, container) if active(layer.input_quantizer) else layer.to_float()


def shipped_input(layer: QuantLayer, container: str | None = None) -> nn.Module:
    """What ships of the layer's input quantizer."""
    quantizer = layer.input_quantizer
    if quantizer is None or not quantizer.is_enabled:
        return nn.Identity()
    return ShippedInput(quantizer.qparams(), container)


def active(quantizer: Quantizer | None) -> bool:
    """Whether there is a quantizer that is switched on."""
    return quantizer is not None and quantizer.is_enabled


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """Names and layers of which something is quantized, each layer once."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer) and (active(module.weight_quantizer) or active(module.input_quantizer)):
            yield name, module


def layer_facts(model: nn.Module) -> list[LayerFacts]:
    """What a file says of each quantized layer, before anything is chosen for the target."""
    return [_facts(name, layer) for name, layer in quantized_layers(model)]


def _facts(name: str, layer: QuantLayer) -> LayerFacts:
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    qparams = inputs.qparams() if inputs is not None and inputs.is_enabled else None
    return LayerFacts(
        name=name,
        kind=layer.float_type.__name__,
        method=layer.method,
        weight_bits=weight.num_bits if weight is not None and weight.is_enabled else None,
        input_bits=inputs.num_bits if inputs is not None and qparams is not None else None,
        container=None if qparams is None else container_of(qparams),
        signed=qparams is not None and qparams.signed,
    )


def _own_computation(layer: QuantLayer) -> list[str]:
    """What a layer has in the place of the methods that ship."""
    kind = next((cls for cls in type(layer).__mro__ if cls in LAYER_KINDS.values()), QuantLayer)
    return [n for n in _COMPUTING if n in vars(layer) or getattr(type(layer), n, None) is not getattr(kind, n, None)]


def container_of(qparams: QParams) -> str:
    """The type that holds an input's integers: `uint8` where none is negative, else `int8`."""
    return "int8" if qparams.quant_min < 0 else "uint8"


def weight_dtype(qparams: QParams) -> torch.dtype:
    """The type that holds a weight's integers: int8, or int16 where they are larger."""
    largest = max(-qparams.quant_min, qparams.quant_max)
    return torch.int8 if largest <= 128 and qparams.quant_max <= 127 else torch.int16


def check_expressible(model: nn.Module) -> None:
    """Raise where a value is not finite, or a quantizer has no form in ONNX, or no grid yet."""
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    broken += [name for name, value in model.named_buffers() if value.isnan().any()]  # a range without data is infinite
    if broken:
        raise CheckpointError(
            f"these values are not all finite, and no integer stands for them: {', '.join(broken)}. The training "
            "diverged; export a checkpoint from before."
        )
    own = [
        f"{name} ({type(layer).__name__}: {', '.join(found)})"
        for name, layer in quantized_layers(model)
        if (found := _own_computation(layer))
    ]
    if own:
        raise ConfigError(
            f"these layers compute in a way of their own, which the file would not have: {'; '.join(own)}. Say what "
            "the weight is in weight_to_quantize, or use torch.nn.utils.parametrize; what is done to inputs or outputs "
            "belongs into a module or a hook."
        )
    uneven = []
    for name, layer in quantized_layers(model):
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            if quantizer is not None and active(quantizer) and not quantizer.is_initialized:
                raise NotInitializedError(
                    f"the {quantizer.role} quantizer of '{name}' never saw data, so it has no scale to export: load "
                    "the checkpoint of a quantized model, or calibrate first."
                )
        inputs = layer.input_quantizer
        if inputs is not None and active(inputs) and inputs.qparams().levels is not None:
            uneven.append(f"{name} ({layer.method})")
    if uneven:
        raise ConfigError(
            f"the inputs of these layers have uneven levels, which no integer engine takes: {', '.join(uneven)}. "
            "Train with another method, such as UQ (APoT with power=False) or LSQ, or with float inputs "
            "(quant_activation=False): APoT weights alone can be exported."
        )
