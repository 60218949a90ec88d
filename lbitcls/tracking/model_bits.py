"""Method and bits of a model's quantized layers, for tables and summaries."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.spec import FLOAT_BITS

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def integer_backbone(model: nn.Module) -> str | None:
    """Return the method and bits of an integer backbone, such as `'LSQ W8A8'`; None for any other backbone."""
    found = getattr(getattr(model, "backbone", None), "quantization", None)
    return None if found == "float" else found


def quantization(model: nn.Module) -> dict[str, float | str]:
    """Return method and bits of a model's quantized layers: the most frequent ones first, its bits as numbers too.

    If layers differ in their bits, the text counts them: `W4A4 (6), W8A8 (2)`.

    Example:
        >>> quantization(nn.Linear(2, 2))
        {'method': 'float', 'bits': 'float', 'weight_bits': 32, 'input_bits': 32}
    """
    layers = [module for module in model.modules() if isinstance(module, QuantLayer)]
    pairs = Counter((_bits(layer.weight_quantizer), _bits(layer.input_quantizer)) for layer in layers)
    (weight, inputs), _ = (pairs.most_common(1) or [((FLOAT_BITS, FLOAT_BITS), 0)])[0]
    named = [f"W{w}A{a}" + (f" ({count})" if len(pairs) > 1 else "") for (w, a), count in pairs.most_common()]
    methods = Counter(sorted(layer.method for layer in layers if layer.method)).most_common()
    integer = integer_backbone(model)
    if integer is not None and not layers:
        method, _, bits = integer.partition(" ")
        return {"method": method, "bits": f"{bits} (backbone)", "weight_bits": weight, "input_bits": inputs}
    return {
        "method": ", ".join(name for name, _ in methods) or "float",
        "bits": ", ".join(named) or "float",
        "weight_bits": weight,
        "input_bits": inputs,
    }


def describe_quantization(model: nn.Module) -> str:
    """Describe the method and bits of a model's quantized layers: most layers' first.

    Example:
        >>> describe_quantization(nn.Sequential(nn.Linear(2, 1)))
        'float'
    """
    integer = integer_backbone(model)
    kinds: Counter[str] = Counter()
    layers = 0
    for module in model.modules():
        layers += isinstance(module, _LAYERS)
        if isinstance(module, QuantLayer):
            bits = f"W{_bits(module.weight_quantizer)}A{_bits(module.input_quantizer)}"
            kinds[f"{module.method} {bits}"] += 1
    parts = [] if integer is None else [f"integer backbone, {integer}"]
    if kinds:
        (main, _), *others = kinds.most_common()
        rest = ", ".join(f"{number} {'layer' if number == 1 else 'layers'} {kind}" for kind, number in others)
        parts.append(f"{main}{rest and f' ({rest})'}, {kinds.total()} of {layers} layers quantized")
    return "; ".join(parts) or "float"


def _bits(quantizer: Any) -> int:
    return FLOAT_BITS if quantizer is None else quantizer.num_bits
