"""Where the error comes from: quantizers are switched on and off, layer by layer, and the output is compared.

    alone      only this layer is quantized          compared with the model without any quantizer
    without    all layers but this one
    up to      this layer and all that come before it

The scan runs on a *basis*: a model with all quantizers, whose output without them is worth comparing with. For a
network that was trained after it was quantized, that is the float model with the trained grids (`graft`): its own
weights have grown together with their grids, and without them it may predict nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lbitcls.analysis.measures import OutputError, Similarity, output_error
from lbitcls.analysis.passes import predict, quantizers_of, weight_quantizer
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.computed_weights import copy_model
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.utils.logging import track

SPLIT = 5
"""So many layers, those that cost most, are quantized in their weight alone and in their input alone, too."""
RELATED = 0.5
"""Least cosine similarity of two models' weights at which one was made from the other."""


@dataclass(frozen=True)
class LayerScan:
    """What a layer does to the output; see the head of this file.

    Attributes:
        rank: 1 for the layer whose `alone.kl` is the largest.
        alone: only this layer is quantized.
        without: all others are.
        up_to: this one and those before it are.
        weight_alone: only its weight is; None where not measured, or the weight stays float.
        input_alone: only its input is; likewise.
    """

    rank: int
    alone: OutputError
    without: OutputError
    up_to: OutputError
    weight_alone: OutputError | None = None
    input_alone: OutputError | None = None


@dataclass(frozen=True)
class Scan:
    """The scan of a model.

    Attributes:
        basis: `'float'`: the float model on the quantized one's grids; `'own'`: the quantized model itself.
        everything: all layers are quantized.
        layers: by name, in the order of the forward pass.
    """

    basis: str
    everything: OutputError
    layers: dict[str, LayerScan]


def graft(quantized: nn.Module, float_model: nn.Module) -> nn.Module:
    """A copy of `quantized` with the weights, biases and statistics of `float_model`, on the same grids."""
    both = copy_model(quantized)
    own = both.state_dict()
    fits = {name: value for name, value in float_model.state_dict().items() if name in own}
    both.load_state_dict({**own, **fits})
    return both


def weight_similarity(quantized: nn.Module, float_model: nn.Module) -> float:
    """Cosine similarity of all weights that are quantized in `quantized` with those of `float_model`."""
    similarity = Similarity()
    for name, layer in quantized.named_modules():
        if isinstance(layer, QuantLayer) and weight_quantizer(layer) is not None:
            other: Any = float_model.get_submodule(name)  # its weight may be a parametrization's
            similarity.add(other.weight, layer.weight)
    return similarity.cosine or 0.0


def scan(
    basis: nn.Module,
    kind: str,
    names: Sequence[str],
    batches: Sequence[Tensor],
    labels: Tensor | None = None,
    shown: bool = False,
) -> Scan:
    """Quantize the layers of `basis` one by one.

    Args:
        basis: in eval mode, without gradients.
        kind: `'float'` or `'own'`.
        names: the quantized layers in the order of the forward pass.
        batches: images; the model runs 3 · len(names) + 2 · SPLIT + 2 times over them.
        labels: (N,) int64, where known.
        shown: a progress bar on a terminal.
    """
    parts = {name: [q for q in quantizers_of(basis.get_submodule(name)) if q.is_enabled] for name in names}
    with quantizing(basis):
        reference = predict(basis, batches)

    def error(chosen: Collection[Quantizer]) -> OutputError:
        with quantizing(basis, chosen):
            return output_error(reference, predict(basis, batches), labels)

    def of(chosen: Sequence[str]) -> OutputError:
        return error([q for name in chosen for q in parts[name]])

    everything = of(names)
    runs = [
        [(name, "alone", [name]), (name, "without", [n for n in names if n != name]), (name, "up_to", names[: i + 1])]
        for i, name in enumerate(names)
    ]
    asked = [run for three in runs for run in three]
    found = {
        (name, what): of(chosen) for name, what, chosen in track(asked, len(asked), "quantizing layer by layer", shown)
    }
    ranked = sorted(names, key=lambda name: -found[name, "alone"].kl)
    split = {name: _split(basis.get_submodule(name), error) for name in ranked[:SPLIT]}
    layers = {}
    for name in names:
        alone, without, up_to = (found[name, what] for what in ("alone", "without", "up_to"))
        weight_alone, input_alone = split.get(name, (None, None))
        layers[name] = LayerScan(ranked.index(name) + 1, alone, without, up_to, weight_alone, input_alone)
    return Scan(kind, everything, layers)


def _split(
    layer: nn.Module, error: Callable[[Collection[Quantizer]], OutputError]
) -> tuple[OutputError | None, OutputError | None]:
    """The weight quantized alone, and the input alone, where both are quantized at all."""
    weight = weight_quantizer(layer)
    both = [q for q in quantizers_of(layer) if q.is_enabled]
    if weight is None or len(both) < 2:
        return None, None
    return error([weight]), error([q for q in both if q is not weight])
