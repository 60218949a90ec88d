"""Quantized layers that multiply integers in training: which layers can, and their forward pass."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lbitcls.quant.continuations import produced
from lbitcls.quant.kernels import integer_step, integer_weights, machine, selection
from lbitcls.quant.kernels.integer_operators import Geometry
from lbitcls.quant.kernels.integer_weights import WeightIntegers
from lbitcls.quant.kernels.norm import Grid
from lbitcls.quant.kernels.norm_autograd import Product
from lbitcls.quant.pending import Pending, Produced, Watched, is_nchw, plain, values_of
from lbitcls.quant.quantizer import OWN_METHODS, Quantizer, is_active


class Layer(Protocol):
    """Quantized layer, as far as its product is concerned (`layers.QuantLayer`)."""

    weight: Tensor
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    training: bool

    @property
    def float_type(self) -> type[nn.Module]:
        """Type of the float layer."""
        ...

    def weight_to_quantize(self) -> Tensor:
        """Return the float tensor that the weight quantizer receives."""
        ...


def multiplies_integers(layer: Layer, x: Tensor) -> bool:
    """Return True if this forward pass of `layer` runs in integers: in training, with gradients, on a CPU."""
    if not layer.training or not torch.is_grad_enabled() or selection.is_traced():
        return False
    seen, weight = _seen(x), stored_weight(layer)
    if selection.is_open() and _learns(layer, x):
        selection.select_at_first_use(seen.device.type)
    return (
        selection.integer_now()
        and seen.device.type == "cpu"
        and _has_served_type(seen, weight)
        and seen.numel() > 0
        and _fits(layer, seen, weight.shape)
        and _why_simulated(layer) is None
        and _has_scales(layer, x)
        and _why_inexact(layer) is None
    )


def stored_weight(layer: Any) -> Tensor:
    """Return the layer's weight, to ask for its shape, type and strides; without values if reading it computes it."""
    if "parametrizations" not in layer._modules or "weight" not in layer.parametrizations:
        weight: Tensor = layer.weight
        return weight
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (layer.out_features, layer.in_features)
    else:
        shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    return torch.empty(shape, dtype=next(layer.parameters()).dtype, device="meta")


def _has_scales(layer: Layer, x: Tensor) -> bool:
    """Return True if the quantizers have scales, which they take from this input if they have none.

    Before the kernels are chosen: a checkpointed function that runs again must choose the same ones.
    """
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    assert weight is not None and inputs is not None
    if inputs.is_initialized and weight.is_initialized:
        return True
    if torch.compiler.is_compiling():
        return False
    with torch.no_grad():
        if not inputs.is_initialized:
            inputs.take_first_values(values_of(x))
        if not weight.is_initialized:
            weight.take_first_values(layer.weight_to_quantize())
    return True


def why_float(layer: Layer) -> str | None:
    """Return the reason why a layer's training step multiplies floats on a CPU with integer kernels, or None."""
    return _why_simulated(layer) or _why_inexact(layer)


def _why_simulated(layer: Layer) -> str | None:
    """Return the reason that does not depend on the integers."""
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        return f"no integer kernel for a {layer.float_type.__name__}"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode='{layer.padding_mode}'"
    if weight is None or inputs is None or not is_active(weight) or not is_active(inputs):
        return "weight or input is float"
    if _watched(weight) or _watched(inputs):
        return "hooks watch a quantizer"
    if _own_forward(inputs):
        return "its input quantizer has its own forward pass"
    if type(inputs).normalize is not Quantizer.normalize:
        return "its input quantizer bends its input"
    return None if inputs.channel_axis is None else "its input has a scale for each channel"


def _why_inexact(layer: Layer) -> str | None:
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    assert weight is not None and inputs is not None
    codes = inputs.quant_max - inputs.quant_min
    largest = max(-weight.quant_min, weight.quant_max)
    # int8 holds -128, but not 128.
    if codes > machine.LARGEST_CODE or largest > machine.LARGEST_WEIGHT + (weight.quant_max <= machine.LARGEST_WEIGHT):
        return "its integers do not fit 8 bits"
    has_zero_point = inputs.quant_min != 0 or type(inputs).zero_point is not Quantizer.zero_point
    shape, geometry = tuple(stored_weight(layer).shape), None
    if not isinstance(layer, nn.Linear):
        geometry, _ = _geometry(layer, len(shape) - 2)
        shape = shape if len(shape) == 4 else (*shape[:2], 1, shape[2])
    return machine.why_inexact(machine.Product(shape, geometry, codes, largest, has_zero_point))


def multiply_integers(layer: Layer, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return the matrix product of the quantized input and weight of `layer`, computed in integers.

    Args:
        layer: Linear layer for which `multiplies_integers` is true.
        x: Input, (..., C).
        bias: Bias to add, (O,).
    """
    y = _product(layer, x, x.reshape(-1, x.shape[-1]), bias, None)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def convolve_integers(layer: Layer, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of the quantized input and weight of `layer`, computed in integers.

    Args:
        layer: Convolution of one or two axes for which `multiplies_integers` is true.
        x: Input, (N, C, L) or (N, C, H, W); the first axis is optional.
        bias: Bias to add, (O,).

    Returns:
        The result, in the order of memory that PyTorch's convolution returns; a `Produced` tensor may delay that.
    """
    if torch.compiler.is_compiling():
        x = plain(x)
    weight = stored_weight(layer)
    axes = weight.dim() - 2
    batched = _seen(x).dim() == axes + 2
    images = x if batched else x.unsqueeze(0)
    geometry, skip = _geometry(layer, axes)
    nchw = axes == 1 or (is_nchw(images) and is_nchw(weight))
    y = _product(layer, x, images if axes == 2 else images.unsqueeze(2), bias, geometry)
    if axes == 2 and batched and not any(skip) and not torch.compiler.is_compiling():
        return produced(y, nchw)
    if any(skip):
        y = y[:, :, skip[0] :, skip[1] :]
    y = y.contiguous(memory_format=torch.contiguous_format if nchw else torch.channels_last)
    if axes == 1:
        y = y.squeeze(2)
    return y if batched else y.squeeze(0)


def _geometry(layer: Any, axes: int) -> tuple[Geometry, tuple[int, ...]]:
    """Return a layer's arguments in two dimensions, and the numbers of first rows and columns to drop.

    Where padding='same' adds an odd number of zeros, the larger half goes to both sides instead of the end only.
    """
    padding, skip = layer.padding, (0,) * axes
    if isinstance(padding, str):
        sizes = zip(layer.kernel_size, layer.dilation, strict=True)
        zeros = [(k - 1) * d if padding == "same" else 0 for k, d in sizes]
        padding, skip = tuple(n - n // 2 for n in zeros), tuple(n % 2 for n in zeros)
    one, none = (1,) * (2 - axes), (0,) * (2 - axes)
    geometry = Geometry(one + layer.stride, none + padding, one + layer.dilation, layer.groups)
    return geometry, none + skip


def _product(layer: Layer, given: Tensor, x: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """Return the product, in the dtype of the simulation.

    Args:
        given: Input as the layer received it; a grid may depend on its shape.
        x: The same values, (N, C, H, W), or (N, C) for a matrix product.
    """
    inputs, weights = layer.input_quantizer, layer.weight_quantizer
    assert inputs is not None and weights is not None
    seen = _seen(x)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else seen.dtype
    weight = _integers(weights, layer.weight_to_quantize(), seen.dim())
    bias = None if bias is None else bias.float()
    if isinstance(x, Pending) and geometry is not None and _continues(inputs, x):
        return _multiply_pending(inputs, x, weight, bias, geometry)
    x, given = plain(x), plain(given)
    if inputs.training:
        inputs.observe(x)
    return integer_step.integer_product(
        inputs.formula,
        inputs.normalize(x),
        inputs.arguments(given),
        _lowest(inputs),
        weight,
        bias,
        geometry,
        selection.active_gradients(),
    ).to(dtype)


def _lowest(inputs: Quantizer) -> Any:
    """Return the smallest number of steps, which becomes code 0: a tensor, or a number for the compiler."""
    if type(inputs).zero_point is Quantizer.zero_point:
        return float(inputs.quant_min) if torch.compiler.is_compiling() else inputs.low
    return inputs.low - inputs.zero_point().detach()


def _integers(quantizer: Quantizer, weight: Tensor, axes: int) -> WeightIntegers:
    """Return a quantized weight as integers with a number of axes: that of a one-dimensional convolution lacks one."""
    if _has_own_method(quantizer):
        found = _integers_of_own_method(quantizer, weight)
    else:
        value = quantizer(weight)
        quantizer.take_recipe()
        found = integer_weights.of_values(value, quantizer.grid(weight)[0])
    if weight.dim() == axes:
        return found
    return found._replace(source=found.source.unsqueeze(2), integers=found.integers.unsqueeze(2))


def _has_own_method(quantizer: Quantizer) -> bool:
    """Return True if the quantizer's forward pass is that of `Quantizer` on a grid of this package."""
    return type(quantizer).grid.__module__.startswith(OWN_METHODS) and not _own_forward(quantizer)


def _integers_of_own_method(quantizer: Quantizer, weight: Tensor) -> WeightIntegers:
    """Quantize as `Quantizer.forward` does; by one kernel if there is one."""
    if quantizer.training:
        quantizer.observe(weight)
    formula, grid, normalized = quantizer.formula, quantizer.arguments(weight), quantizer.normalize(weight)
    if integer_weights.has_kernel(formula, normalized, grid, quantizer.channel_axis):
        return integer_weights.by_kernel(formula, normalized, grid, quantizer.quant_min, quantizer.quant_max)
    value = formula(normalized, quantizer.channel_axis, *grid).to(weight.dtype)
    return integer_weights.of_values(value, grid[0])


def _continues(inputs: Quantizer, x: Pending) -> bool:
    """Return True if one kernel computes the activation that `x` promises and quantizes it."""
    return (
        x.promise is not None
        and x.same_hooks()
        and not torch.is_autocast_enabled("cpu")
        and type(inputs).observe is Quantizer.observe  # it needs no values
        and type(inputs).grid.__module__.startswith(OWN_METHODS)
        and type(inputs).normalize is Quantizer.normalize
    )


def _multiply_pending(
    inputs: Quantizer, x: Pending, weight: WeightIntegers, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    promise = x.promise
    assert promise is not None
    x.continued = True
    parameters = inputs.grid(promise.z_data)
    grid = Grid(inputs.formula, parameters, _lowest(inputs), inputs.quant_max - inputs.quant_min)
    settings = (promise, weight.source, bias, weight, grid, geometry, selection.active_gradients(), Produced.wrap)
    if promise.shortcut is None:
        y: Tensor = Product.apply(*promise.sources, *settings, None, *parameters)
        return y
    # The next addition needs the activation: the kernel fills it, and its gradient comes with the product's.
    y, _ = Product.apply(*promise.sources, *settings, x, *parameters)
    x.was_filled()
    return y


def _fits(layer: Any, x: Tensor, shape: tuple[int, ...]) -> bool:
    """Return True if a layer with a weight of that shape accepts the input; the simulation says what does not fit."""
    if isinstance(layer, nn.Linear):
        return x.dim() > 0 and x.shape[-1] == shape[1]
    axes = len(shape) - 2
    if axes not in (1, 2) or x.dim() not in (axes + 1, axes + 2) or x.shape[-axes - 1] != shape[1] * layer.groups:
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" or all(size >= k for size, k in zip(x.shape[-axes:], _reach(layer)))
    return all(size + 2 * p >= reach for size, p, reach in zip(x.shape[-axes:], layer.padding, _reach(layer)))


def _reach(layer: Any) -> list[int]:
    return [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size)]


def _has_served_type(x: Tensor, weight: Tensor) -> bool:
    """Return True if the simulation would accept the input's type, and integers replace its arithmetic."""
    if torch.is_autocast_enabled("cpu"):
        return x.dtype.is_floating_point and x.dtype is not torch.float64
    return x.dtype is weight.dtype and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _own_forward(quantizer: Quantizer) -> bool:
    """Return True if calling `quantizer` runs other code than `Quantizer.forward`, which this module stands in for."""
    return type(quantizer).forward is not Quantizer.forward or "forward" in vars(quantizer)


def _seen(x: Tensor) -> Tensor:
    """Return a tensor with the shape and type of `x` that is asked for them in less time."""
    return x.data_alias if isinstance(x, Watched) else x


def _learns(layer: Any, x: Tensor) -> bool:
    return x.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())


def _watched(module: Quantizer) -> bool:
    """Return True if hooks observe the calls of `module`."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
