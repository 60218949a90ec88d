"""Origin of the error: quantizers are enabled and disabled layer by layer, and the output is compared.

    alone      only this layer is quantized          compared with the model without any quantizer
    without    all layers but this one
    up to      this layer and all before it

The scan runs on a *basis*: a model with all quantizers whose output without them is a meaningful reference. For a
network that was trained after quantization, that is the float model with the trained grids (`graft`): the network's own
weights have adapted to their grids, and without the grids its predictions may be meaningless.
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
"""Number of most sensitive layers to quantize also in their weight alone and in their input alone."""
RELATED = 0.5
"""Cosine similarity of two models' weights from which one counts as derived from the other."""


@dataclass(frozen=True)
class LayerScan:
    """Effect of a layer on the output; see the module's docstring.

    Attributes:
        rank: Rank by `alone.kl`; 1 for the largest.
        alone: Error with only this layer quantized.
        without: Error with all layers but this one quantized.
        up_to: Error with this layer and those before it quantized.
        weight_alone: Error with only its weight quantized; None if not measured, or if the weight stays float.
        input_alone: Error with only its input quantized; None likewise.
    """

    rank: int
    alone: OutputError
    without: OutputError
    up_to: OutputError
    weight_alone: OutputError | None = None
    input_alone: OutputError | None = None


@dataclass(frozen=True)
class Scan:
    """Scan of a model.

    Attributes:
        basis: `'float'`: the float model on the quantized one's grids; `'own'`: the quantized model itself.
        everything: Error with all layers quantized.
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
    kind: str,
    names: Sequence[str],
    batches: Sequence[Tensor],
    labels: Tensor | None = None,
    shown: bool = False,
) -> Scan:
    """Quantize the layers of `basis` one by one.

    Args:
        basis: Model in eval mode, without gradients.
        kind: `'float'` or `'own'`.
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
    return Scan(kind, everything, layers)


def _split(
    layer: nn.Module, error: Callable[[Collection[Quantizer]], OutputError]
) -> tuple[OutputError | None, OutputError | None]:
    """Return the errors with only the weight and only the input quantized, if both are quantized."""
    weight = weight_quantizer(layer)
    both = [q for q in quantizers_of(layer) if q.is_enabled]
    if weight is None or len(both) < 2:
        return None, None
    return error([weight]), error([q for q in both if q is not weight])
