"""Bits that each layer of a trained float model can take without training: one layer is quantized at a time.

    trial        the layer's weight and inputs at b bits, with ranges of least squared error; all other layers in float
    output       SQNR of the layer's output for the same inputs, in dB
    divergence   KL divergence of the model's output from the float model's, in nats
    bits         the fewest for which the layer's divergence stays below a limit that is the same for all layers: the
                 largest for which the divergences add up to at most `BUDGET`, or 8 if no bits stay below it

Training with quantizers recovers much of the error, so these are bits for calibration, and a ranking for training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, cat, nn

from lbitcls.analysis.measures import OutputError, Similarity, output_error
from lbitcls.analysis.passes import in_eval, input_quantizer, looking, predict, weight_quantizer
from lbitcls.analysis.vital_signs import measure_grid, sample_values
from lbitcls.quant.bit_assignment import entry_with_bits
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.methods import build_quant_layer
from lbitcls.quant.plan import Plan, PlanRow
from lbitcls.quant.ranges import mse
from lbitcls.utils.errors import ConfigError, DataError
from lbitcls.utils.logging import track

BITS = (8, 7, 6, 5, 4, 3, 2)
BUDGET = 0.05
"""Sum of the layers' divergences that the recommended bits may reach, in nats."""
_MUCH = 3.0  # dB between the SQNR of weight and inputs, from which one of them is the cause


@dataclass(frozen=True)
class Trial:
    """Effect of one layer at some bits.

    Attributes:
        bits: Bits of the weight and the inputs.
        sqnr_db: SQNR of the layer's output, in dB; None: no error.
        weight_db: SQNR of its weight, in dB; None: no error, or the weight stays float.
        input_db: SQNR of its inputs, likewise.
        error: Difference of the model's output from the float model's.
        loss: Change of the cross-entropy loss, in nats; None: labels are unknown.
    """

    bits: int
    sqnr_db: float | None
    weight_db: float | None
    input_db: float | None
    error: OutputError
    loss: float | None


@dataclass(frozen=True)
class LayerBits:
    """Trials of one layer, most bits first, and the recommendation.

    Attributes:
        name: Full name of the layer.
        kind: Its type.
        parameters: Number of its parameters.
        trials: Trials at `BITS`.
        bits: Recommended bits.
        why: Reason for not fewer, as a sentence.
    """

    name: str
    kind: str
    parameters: int
    trials: tuple[Trial, ...]
    bits: int
    why: str


@dataclass(frozen=True)
class BitsReport:
    """Result of `try_bits`.

    Attributes:
        images: Number of images.
        labelled: True if the images' labels are known.
        float_top1: Top-1 accuracy of the float model as a fraction; None without labels.
        limit: Divergence that each layer may cause, in nats.
        layers: Layers in the model's order.
        together: Error with all layers at their recommended bits.
    """

    images: int
    labelled: bool
    float_top1: float | None
    limit: float
    layers: tuple[LayerBits, ...]
    together: OutputError

    @property
    def mean_bits(self) -> float:
        """Recommended bits, the mean over the parameters."""
        total = sum(layer.parameters for layer in self.layers)
        return sum(layer.bits * layer.parameters for layer in self.layers) / total


def try_bits(
    model: nn.Module, plan: Plan, batches: Sequence[Tensor], labels: Tensor | None = None, shown: bool = False
) -> BitsReport:
    """Quantize one layer after the other to 8, …, 2 bits, and leave the model unchanged.

    Args:
        model: Trained float model.
        plan: Plan of a transformer for `model`, whose entries define the method; their bits are replaced.
        batches: Images (N, C, H, W) on the model's device; the model runs 7 times per layer over them, and twice more.
        labels: (sum of N,) int64 on the CPU, if known.
        shown: Show a progress bar on a terminal.

    Raises:
        ConfigError: The plan quantizes no layer that the images pass.
        DataError: There are no images, or the float model's output is not finite.
    """
    if not batches:
        raise DataError("there are no images to try the bits on.")
    with in_eval(model):
        samples: dict[str, list[Tensor]] = {}
        with looking(model, lambda name, _, x, y: samples.setdefault(name, []).append(sample_values(x))):
            logits = predict(model, batches)
        if not logits.isfinite().all():
            raise DataError("the float model's output is not finite on these images; there is nothing to compare.")
        rows = [row for row in plan.quantized if row.name in samples]
        if not rows:
            raise ConfigError("quant_transformer quantizes no layer that these images pass; there are no bits to try.")
        inputs = {row.name: cat(samples[row.name]) for row in rows}
        asked = [(row, bits) for row in rows for bits in BITS]
        trials: dict[str, list[Trial]] = {}
        for row, bits in track(asked, len(asked), "quantizing layer by layer", shown):
            trial = _try(model, row, bits, inputs[row.name], batches, logits, labels)
            trials.setdefault(row.name, []).append(trial)
        limit = find_limit([_costs(found) for found in trials.values()])
        layers = tuple(_recommend(row, trials[row.name], limit) for row in rows)
        together = _together(model, rows, layers, inputs, batches, logits, labels)
    top1 = output_error(logits, logits, labels).top1
    return BitsReport(len(logits), labels is not None, top1, limit, layers, together)


def find_limit(costs: Sequence[Mapping[int, float]], budget: float = BUDGET) -> float:
    """Return the largest limit for which the layers' divergences, each within it, add up to at most `budget`.

    Args:
        costs: Divergence of each layer by its bits.
        budget: Largest sum.

    Example:
        >>> find_limit([{8: 0.0, 4: 0.01, 2: 0.9}, {8: 0.0, 4: 0.03, 2: 0.6}])
        0.03
    """
    limits = sorted({kl for one in costs for kl in one.values()})
    fitting = [limit for limit in limits if sum(one[fewest_bits(one, limit)] for one in costs) <= budget]
    return max(fitting, default=0.0)


def fewest_bits(costs: Mapping[int, float], limit: float) -> int:
    """Return the fewest bits from which on, upwards, all divergences are within `limit`; the most bits if none are."""
    best = max(costs)
    for bits in sorted(costs, reverse=True):
        if costs[bits] > limit:
            break
        best = bits
    return best


def _costs(trials: Sequence[Trial]) -> dict[int, float]:
    return {trial.bits: trial.error.kl for trial in trials}


def _try(
    model: nn.Module,
    row: PlanRow,
    bits: int,
    inputs: Tensor,
    batches: Sequence[Tensor],
    logits: Tensor,
    labels: Tensor | None,
) -> Trial:
    layer = _quantized(row, bits, model, inputs)
    own = Similarity()

    def look(name: str, called: nn.Module, x: Tensor, y: Tensor) -> None:
        if called is layer:
            with quantizing(layer):
                own.add(layer.forward(x), y)

    with _replaced(model, row.name, layer), looking(model, look):
        found = predict(model, batches)
    weight, of_inputs = weight_quantizer(layer), input_quantizer(layer)
    return Trial(
        bits=bits,
        sqnr_db=own.sqnr_db,
        weight_db=None if weight is None else measure_grid(row.name, weight, layer.weight_to_quantize()).sqnr_db,
        input_db=None if of_inputs is None else measure_grid(row.name, of_inputs, inputs).sqnr_db,
        error=output_error(logits, found, labels),
        loss=None if labels is None else (F.cross_entropy(found, labels) - F.cross_entropy(logits, labels)).item(),
    )


def _quantized(row: PlanRow, bits: int, model: nn.Module, inputs: Tensor) -> QuantLayer:
    """Return the layer at some bits, with the same weight, and ranges of least squared error."""
    layer: Any = build_quant_layer(entry_with_bits(row, bits), model.get_submodule(row.name))
    layer.eval()
    for quantizer, values in ((layer.weight_quantizer, layer.weight_to_quantize()), (layer.input_quantizer, inputs)):
        if quantizer is not None:
            quantizer.initialize(values, mse)
    quantized: QuantLayer = layer
    return quantized


@contextmanager
def _replaced(model: nn.Module, name: str, layer: nn.Module) -> Iterator[None]:
    """Replace the layer `name`, under all its names, within the block."""
    original = model.get_submodule(name)
    places = [n for n, module in model.named_modules(remove_duplicate=False) if module is original]
    owners = [(model.get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2]) for place in places]
    for owner, child in owners:
        setattr(owner, child, layer)
    try:
        yield
    finally:
        for owner, child in owners:
            setattr(owner, child, original)


def _together(
    model: nn.Module,
    rows: Sequence[PlanRow],
    layers: Sequence[LayerBits],
    inputs: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    logits: Tensor,
    labels: Tensor | None,
) -> OutputError:
    """Return the error with all layers at their recommended bits."""
    chosen = [_quantized(row, layer.bits, model, inputs[row.name]) for row, layer in zip(rows, layers, strict=True)]
    with ExitStack() as stack:
        for row, layer in zip(rows, chosen, strict=True):
            stack.enter_context(_replaced(model, row.name, layer))
        return output_error(logits, predict(model, batches), labels)


def _recommend(row: PlanRow, trials: Sequence[Trial], limit: float) -> LayerBits:
    bits = fewest_bits(_costs(trials), limit)
    return LayerBits(row.name, row.kind, row.parameters, tuple(trials), bits, _why(trials, bits, limit))


def _why(trials: Sequence[Trial], bits: int, limit: float) -> str:
    by_bits = {trial.bits: trial for trial in trials}
    chosen, fewer = by_bits[bits], by_bits.get(bits - 1)
    if chosen.error.kl > limit:
        return f"Even {bits} bits cost {chosen.error.kl:.2g} nats, above the limit of {limit:.2g}. {_cause(chosen)}"
    if fewer is None:
        return f"{bits} bits cost {chosen.error.kl:.2g} nats."
    return f"{fewer.bits} bits would cost {fewer.error.kl:.2g} nats. {_cause(fewer)}"


def _cause(trial: Trial) -> str:
    """Return a sentence on the part of the layer that loses most."""
    weight, inputs = trial.weight_db, trial.input_db
    if weight is None or inputs is None:
        return f"SQNR of its {'inputs' if weight is None else 'weight'}: {weight or inputs or 0:.0f} dB."
    which = "inputs" if inputs < weight else "weight"
    if abs(weight - inputs) < _MUCH:
        return f"Both lose: SQNR of its weight {weight:.0f} dB, of its inputs {inputs:.0f} dB."
    return f"Its {which} lose{'s' if which == 'weight' else ''} most: weight {weight:.0f} dB, inputs {inputs:.0f} dB."
