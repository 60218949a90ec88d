"""What the quantizers of a model do to its weights and to one batch of inputs, at the moment: while it trains, say."""

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
"""Values of a layer's inputs that are counted: as many of the images as have no more, and one at least."""


@dataclass(frozen=True)
class LayerSnapshot:
    """One layer.

    Attributes:
        weight: what becomes of its weight.
        input: what becomes of its inputs; None: none reached it.
    """

    weight: TensorReport
    input: TensorReport | None


def take_snapshot(
    model: nn.Module, images: Tensor | None, names: Collection[str]
) -> tuple[dict[str, LayerSnapshot], Tensor | None]:
    """Run the model once, in eval mode and without gradients; nothing of it changes.

    Args:
        model: quantized, its quantizers initialized, or float, or float for the time being.
        images: (N, C, H, W) on its device; None: the weights alone are looked at.
        names: of the layers that are looked at (`layers_of`). Of one that is called several times the first call
            counts.

    Returns:
        The layers in the order of definition, and the logits (N, K), float32 on the CPU; None without images.
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
    """The weight as its quantizer sees it, or as it is."""
    weight: Any = layer.weight_to_quantize() if isinstance(layer, QuantLayer) else layer.weight
    return weight.detach()
