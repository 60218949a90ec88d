"""Snapshot of what a model's quantizers do to its weights and to one batch of inputs, for example during training."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.analysis.passes import in_eval, input_quantizer, layers_of, looking, predict, weight_quantizer
from lbitcls.analysis.tensors import Extent, TensorReport, TensorWatch, watch_weight
from lbitcls.quant.computed_weights import settle
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer

MOST = 2**20
"""Maximum number of a layer's input values to count: the images that fit into it, but at least one."""


@dataclass(frozen=True)
class LayerSnapshot:
    """Snapshot of one layer.

    Attributes:
        weight: Quantization of its weight.
        input: Quantization of its inputs; None: no input reached it.
    """

    weight: TensorReport
    input: TensorReport | None


def take_snapshot(
    model: nn.Module, images: Tensor | None, names: Collection[str]
) -> tuple[dict[str, LayerSnapshot], Tensor | None]:
    """Run the model once, in eval mode and without gradients, and leave it unchanged.

    Args:
        model: Quantized model with initialized quantizers, or a float one, permanently or temporarily.
        images: (N, C, H, W) on the model's device; None: inspect only the weights.
        names: Names of the layers to inspect (`layers_of`). For a layer that is called several times, the first call
            counts.

    Returns:
        The layers in order of definition, and the logits (N, K), float32 on the CPU; None without images.
    """
    inputs: dict[str, TensorReport] = {}

    def look(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if name in names and name not in inputs:
            inputs[name] = _report(x, input_quantizer(layer))

    logits = None
    with in_eval(model):
        if images is not None:
            with looking(model, look):
                logits = predict(model, [images])
        settle(model)
        layers = {name: layer for name, layer in layers_of(model).items() if name in names}
        weights = {name: watch_weight(weight_quantizer(layer), _weight(layer), None) for name, layer in layers.items()}
    return {name: LayerSnapshot(weight, inputs.get(name)) for name, weight in weights.items()}, logits


def _report(x: Tensor, quantizer: Quantizer | None) -> TensorReport:
    chosen = x[: max(1, MOST // max(x[0].numel(), 1))]
    extent = Extent()
    extent.add(chosen, quantizer)
    watch = TensorWatch(quantizer, extent)
    watch.add(chosen)
    return watch.report()


@torch.no_grad()
def _weight(layer: nn.Module) -> Tensor:
    """Return the weight as its quantizer sees it, or unchanged if it has none."""
    weight: Any = layer.weight_to_quantize() if isinstance(layer, QuantLayer) else layer.weight
    return weight.detach()
