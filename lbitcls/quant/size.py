"""Model size, in float and at the bits of the quantized layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from lbitcls.quant.computed_weights import has_computed_weights, plain_copy
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import FLOAT_BITS

if TYPE_CHECKING:
    from lbitcls.protocols import SizedInBits


def model_size(model: nn.Module) -> dict[str, float]:
    """Return the size of what inference needs, in KiB: parameters, BatchNorm's running statistics, scales.

    Returns:
        `float_kib`: everything in 32 bits, without quantizers. `quantized_kib`: weights with an enabled quantizer at
        its number of bits, scales and zero points in 32 bits each, and the rest in 32 bits, including layers that
        forward passes were seen to bypass (`QuantLayer.bypassed`).
    """
    if has_computed_weights(model):  # the tensors that a weight is computed from are not exported
        model = plain_copy(model)
    float_bits = quantized_bits = 0
    for module in model.modules():
        if hasattr(module, "size_bits"):  # an integer backbone, whose weights are not tensors of the model
            of_float, as_it_is = cast("SizedInBits", module).size_bits()
            float_bits, quantized_bits = float_bits + of_float, quantized_bits + as_it_is
            continue
        if isinstance(module, Quantizer):
            quantized_bits += 2 * FLOAT_BITS * (module.num_channels or 1) * int(module.is_enabled)
            continue
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not tensor.is_floating_point():
                continue
            float_bits += FLOAT_BITS * tensor.numel()
            quantized_bits += _bits(module, name) * tensor.numel()
    return {"float_kib": float_bits / 8192, "quantized_kib": quantized_bits / 8192}


def _bits(module: nn.Module, name: str) -> int:
    if name == "weight" and isinstance(module, QuantLayer) and module.weight_quantizer is not None:
        used = module.weight_quantizer.is_enabled and not module.bypassed
        return module.weight_quantizer.num_bits if used else FLOAT_BITS
    return FLOAT_BITS
