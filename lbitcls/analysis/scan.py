"""Origin of the error: quantizers are enabled and disabled layer by layer, and the output is compared.

Basis `float`, for a float model and its calibrated form, which has the same weights (`scan`):

    alone      only this layer is quantized          compared with the float model
    without    all layers but this one
    up to      this layer and all before it

Basis `quantized`, for a model trained with its quantizers, or without its float model (`scan_trained`):

    alone      this layer's quantizers are off, all others on       compared with the quantized model
    without    the same                                             compared with the float model, if there is one

Weights that were trained with quantizers have adapted to their grids. Without all the grids, their predictions may be
meaningless, and so would be what one grid adds to them; but with one layer's quantizers off, the others still have what
they were trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lbitcls.analysis.measures import OutputError, Similarity, output_error
from lbitcls.analysis.passes import predict, quantizers_of, weight_quantizer
from lbitcls.quant.calibration import named_quantizers, quantizing
from lbitcls.quant.computed_weights import copy_model
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.utils.logging import track

SPLIT = 5
"""Number of most sensitive layers whose weight and input are also switched on their own."""


@dataclass(frozen=True)
class LayerScan:
    """Effect of a layer on the output; see the module's docstring.

    Attributes:
        rank: Rank by `alone.kl`; 1 for the largest.
        alone: Error with only this layer switched: quantized, or on the basis `quantized` in float.
        without: Error with all layers but this one quantized.
        up_to: Error with this layer and those before it quantized; None on the basis `quantized`.
        weight_alone: Error with only its weight switched; None if not measured, or if the weight stays float.
        input_alone: Error with only its input switched; None likewise.
    """

    rank: int
    alone: OutputError
    without: OutputError
    up_to: OutputError | None = None
    weight_alone: OutputError | None = None
    input_alone: OutputError | None = None


@dataclass(frozen=True)
class Scan:
    """Scan of a model.

    Attributes:
        basis: `'float'` or `'quantized'`.
        everything: Error with all layers quantized, against the model that `LayerScan.without` is compared with.
        layers: Scans by layer name, in forward order.
    """

    basis: str
    everything: OutputError
    layers: dict[str, LayerScan]


def graft(quantized: nn.Module, float_model: nn.Module) -> nn.Module:
    """Return a copy of `quantized` with the weights, biases and statistics of `float_model`, on the same grids."""
    both = copy_model(quantized)
    own = both.state_dict()
    fits = {name: value for name, value in float_model.state_dict().items() if name in own}
    both.load_state_dict({**own, **fits})
    return both


def weight_similarity(quantized: nn.Module, float_model: nn.Module) -> float:
    """Return the cosine similarity of all weights quantized in `quantized` and those of `float_model`."""
    similarity = Similarity()
    for name, layer in quantized.named_modules():
        if isinstance(layer, QuantLayer) and weight_quantizer(layer) is not None:
            other: Any = float_model.get_submodule(name)  # its weight may be a parametrization's
            similarity.add(other.weight, layer.weight)
    return similarity.cosine or 0.0


def scan(
    basis: nn.Module,
    names: Sequence[str],
    batches: Sequence[Tensor],
    labels: Tensor | None = None,
    shown: bool = False,
) -> Scan:
    """Quantize the layers of `basis` one by one.

    Args:
        basis: Calibrated model in eval mode, without gradients.
        names: Quantized layers in forward order.
        batches: Images; the model runs 3 · len(names) + 2 · SPLIT + 2 times over them.
        labels: (N,) int64, if known.
        shown: Show a progress bar on a terminal.
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
    return Scan("float", everything, layers)


def scan_trained(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Tensor],
    reference: Tensor | None = None,
    labels: Tensor | None = None,
    shown: bool = False,
) -> Scan:
    """Switch the quantizers of a trained model's layers off, one layer at a time.

    Args:
        model: Quantized model in eval mode, without gradients.
        names: Quantized layers in forward order.
        batches: Images; the model runs len(names) + 2 · SPLIT + 1 times over them.
        reference: Logits (N, K) of the float model; None: without one, `without` is compared like `alone`.
        labels: (N,) int64, if known.
        shown: Show a progress bar on a terminal.
    """
    on = [quantizer for _, quantizer in named_quantizers(model) if quantizer.is_enabled]
    quantized = predict(model, batches)
    target = quantized if reference is None else reference

    def without(off: Collection[Quantizer]) -> Tensor:
        chosen = {id(quantizer) for quantizer in off}
        with quantizing(model, [quantizer for quantizer in on if id(quantizer) not in chosen]):
            return predict(model, batches)

    layers = {name: model.get_submodule(name) for name in names}
    progress = track(names, len(names), "switching layers off", shown)
    logits = {name: without(quantizers_of(layers[name])) for name in progress}
    alone = {name: output_error(quantized, logits[name], labels) for name in names}
    ranked = sorted(names, key=lambda name: -alone[name].kl)
    split = {
        name: _split(layers[name], lambda off: output_error(quantized, without(off), labels)) for name in ranked[:SPLIT]
    }
    found = {
        name: LayerScan(
            ranked.index(name) + 1,
            alone[name],
            output_error(target, logits[name], labels),
            None,
            *split.get(name, (None, None)),
        )
        for name in names
    }
    return Scan("quantized", output_error(target, quantized, labels), found)


def _split(
    layer: nn.Module, error: Callable[[Collection[Quantizer]], OutputError]
) -> tuple[OutputError | None, OutputError | None]:
    """Return the errors with only the weight and only the input switched, if both are quantized."""
    weight = weight_quantizer(layer)
    both = [q for q in quantizers_of(layer) if q.is_enabled]
    if weight is None or len(both) < 2:
        return None, None
    return error([weight]), error([q for q in both if q is not weight])
