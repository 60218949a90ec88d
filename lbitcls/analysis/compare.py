"""Layer-by-layer comparison of a float model and its quantized form on images.

    analysis = compare_models(quantized, float_model, batches)

Both models run twice over the images, with hooks that count and keep nothing (`passes`); then the quantizers of one
layer after the other are switched (`scan`). The results depend on the models and the images alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.analysis.findings import Analysis, LayerReport, OutputReport, Totals
from lbitcls.analysis.illnesses import diagnose
from lbitcls.analysis.measures import Similarity, output_error, top1
from lbitcls.analysis.passes import (
    LayerWatch,
    Survey,
    in_eval,
    input_quantizer,
    layers_of,
    quantizers_of,
    survey,
    watch_layers,
    weight_quantizer,
)
from lbitcls.analysis.scan import Scan, graft, scan, scan_trained, weight_similarity
from lbitcls.analysis.tensors import Extent, TensorWatch, watch_weight
from lbitcls.analysis.vital_signs import take_signs
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.cost import LayerCost, plan_cost
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.plan import Plan, PlanRow, own_parameters
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.size import model_size
from lbitcls.quant.spec import FLOAT_BITS
from lbitcls.utils.errors import ConfigError, DataError


def compare_models(
    model: nn.Module,
    float_model: nn.Module | None,
    batches: Sequence[Tensor],
    labels: Tensor | None = None,
    shown: bool = False,
) -> Analysis:
    """Compare a quantized model with its float form.

    Args:
        model: Transformed model with initialized quantizers; or a float one, which is then described on its own.
        float_model: The same architecture in float; None: `model` is compared with itself without its quantizers.
        batches: Images (N, C, H, W) on the models' device.
        labels: (sum of N,) int64 on the CPU, if known.
        shown: Show a progress bar on a terminal.

    Raises:
        ConfigError: The two models differ in architecture.
        DataError: There are no images, or an output is not finite.
        NotInitializedError: A quantizer never saw data.

    Example:
        >>> from lbitcls.quant import build_quant_layer
        >>> float_model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
        >>> layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), float_model[0])
        >>> quantized, images = nn.Sequential(layer, nn.Flatten()), torch.rand(8, 3, 8, 8)
        >>> logits = quantized(images)  # the quantizers take their first values
        >>> analysis = compare_models(quantized, float_model, [images])
        >>> analysis.layers[0].input.grid.levels_available
        16
    """
    if not batches:
        raise DataError("there are no images to compare the models on.")
    if float_model is not None:
        check_same_architecture(model, float_model)
    with ExitStack() as stack:
        for one in (model, float_model):
            if one is not None:
                stack.enter_context(in_eval(one))
        return _compare(model, float_model, batches, labels, shown)


def check_same_architecture(model: nn.Module, float_model: nn.Module) -> None:
    """Raise `ConfigError` unless `model` has the same layers as `float_model`, each of the same shape."""
    both: list[dict[str, Any]] = [dict(layers_of(one)) for one in (model, float_model)]
    ours, theirs = ({name: tuple(layer.weight.shape) for name, layer in layers.items()} for layers in both)
    for name in dict.fromkeys([*theirs, *ours]):
        if ours.get(name) != theirs.get(name):
            said = [f"{shapes[name]}" if name in shapes else "missing" for shapes in (theirs, ours)]
            raise ConfigError(
                f"the float and the quantized model differ in architecture: the weight of {name} is {said[0]} in the "
                f"float one and {said[1]} in the quantized one. Give two configs of the same model."
            )


def _compare(
    model: nn.Module, float_model: nn.Module | None, batches: Sequence[Tensor], labels: Tensor | None, shown: bool
) -> Analysis:
    layers = layers_of(model)
    quantized = any(weight_quantizer(m) or input_quantizer(m) for m in layers.values())
    quantizers = {name: input_quantizer(layer) for name, layer in layers.items()}
    seen = survey(model, batches, quantizers, "the model" if float_model is None else "the quantized model")
    base = None if float_model is None else survey(float_model, batches, quantizers, "the float model")
    with quantizing(model):
        own = survey(model, batches, {}, "the quantized model without its quantizers") if quantized else None
    watches = {name: LayerWatch(TensorWatch(quantizers[name], _extent(name, seen, base))) for name in seen.order}
    watch_layers(model, float_model, batches, watches)
    grafted = None if float_model is None else graft(model, float_model)
    similarity = None if float_model is None or not quantized else weight_similarity(model, float_model)
    scanned = None
    retrained = float_model is not None and _differ(model, float_model)
    if quantized:
        names = [name for name in seen.order if any(q.is_enabled for q in quantizers_of(layers[name]))]
        if base is None or retrained:
            scanned = scan_trained(model, names, batches, None if base is None else base.logits, labels, shown)
        else:
            scanned = scan(model, names, batches, labels, shown)
    reference = base or own
    costs = _costs(model, batches[0][:1])
    return Analysis(
        images=len(seen.logits),
        image_shape=tuple(batches[0].shape[1:]),
        labelled=labels is not None,
        reference=None if reference is None else "own" if base is None else "float",
        retrained=retrained,
        float_top1=None if base is None else top1(base.logits, labels),
        top1=top1(seen.logits, labels),
        error=None if reference is None else output_error(reference.logits, seen.logits, labels),
        own_error=None if own is None else output_error(own.logits, seen.logits, labels),
        weight_similarity=similarity,
        totals=_totals(model, costs.values()),
        basis=None if scanned is None else scanned.basis,
        everything=None if scanned is None else scanned.everything,
        check_up=tuple(diagnose(take_signs(model, batches))) if quantized else None,
        layers=tuple(
            _layer(name, layers[name], costs[name], watches[name], grafted, scanned, reference is not None)
            for name in seen.order
        ),
    )


def _extent(name: str, seen: Survey, base: Survey | None) -> Extent:
    """Return the range of a layer's inputs in both models."""
    found = [one.extents[name] for one in (seen, base) if one is not None and name in one.extents]
    return Extent(
        min(e.lowest for e in found),
        max(e.highest for e in found),
        min(e.lowest_step for e in found),
        max(e.highest_step for e in found),
    )


def _differ(model: nn.Module, float_model: nn.Module) -> bool:
    """Return True if any weight, bias or statistic of the two models differs."""
    ours = model.state_dict()
    return any(name in ours and not torch.equal(value, ours[name]) for name, value in float_model.state_dict().items())


def _costs(model: nn.Module, image: Tensor) -> dict[str, LayerCost]:
    """Return the cost of every module with parameters, except quantizers, by name."""
    modules = ((name, module) for name, module in model.named_modules() if not isinstance(module, Quantizer))
    rows = [_row(name, module) for name, module in modules if own_parameters(module)]
    return {cost.row.name: cost for cost in plan_cost(Plan(tuple(rows)), model, image)}


def _row(name: str, module: nn.Module) -> PlanRow:
    """Return a layer's row of a plan, read from the layer itself."""
    kind = module.float_type if isinstance(module, QuantLayer) else type(module)
    weight, inputs = weight_quantizer(module), input_quantizer(module)
    method = getattr(module, "method", None) if weight or inputs else None
    bits_w, bits_a = (None if quantizer is None else quantizer.num_bits for quantizer in (weight, inputs))
    own: Tensor | None = getattr(module, "weight", None)
    shape = () if own is None else tuple(own.shape)
    return PlanRow(name, kind.__name__, shape, method, bits_w, bits_a, "", own_parameters(module))


def _totals(model: nn.Module, costs: Iterable[LayerCost]) -> Totals:
    costs, size = list(costs), model_size(model)
    return Totals(
        parameters=sum(cost.row.parameters for cost in costs),
        macs=sum(cost.macs for cost in costs),
        bit_operations=sum(cost.bit_operations for cost in costs),
        float_bit_operations=sum(cost.float_bit_operations for cost in costs),
        size_kib=size["quantized_kib"],
        float_size_kib=size["float_kib"],
    )


def _layer(
    name: str,
    layer: nn.Module,
    cost: LayerCost,
    watch: LayerWatch,
    grafted: nn.Module | None,
    scanned: Scan | None,
    compared: bool,
) -> LayerReport:
    row = cost.row
    weight = _quantized_from(layer)
    of_float = None if grafted is None else _quantized_from(grafted.get_submodule(name))
    similarity = Similarity()
    if of_float is not None:
        similarity.add(of_float, weight)
    own = None if row.entry is None else watch.own
    return LayerReport(
        name=name,
        kind=row.kind,
        method=row.entry,
        shape=row.shape,
        num_bit_w=row.num_bit_w or FLOAT_BITS,
        num_bit_a=row.num_bit_a or FLOAT_BITS,
        folded=bool(getattr(layer, "folded_norm", ())),
        parameters=row.parameters,
        macs=cost.macs,
        bit_operations=cost.bit_operations,
        float_bit_operations=cost.float_bit_operations,
        size_bits=cost.size_bits,
        float_size_bits=cost.float_size_bits,
        weight_similarity=similarity.cosine,
        weight=watch_weight(weight_quantizer(layer), weight, of_float),
        input=watch.inputs.report(),
        output=None
        if not compared
        else OutputReport(
            own_sqnr_db=None if own is None else own.sqnr_db,
            own_cosine=None if own is None else own.cosine,
            sqnr_db=watch.against.sqnr_db,
            cosine=watch.against.cosine,
        ),
        scan=None if scanned is None else scanned.layers.get(name),
    )


def _quantized_from(layer: nn.Module) -> Tensor:
    """Return the weight as its quantizer sees it, or unchanged if it has none."""
    weight: Any = layer.weight_to_quantize() if isinstance(layer, QuantLayer) else layer.weight
    return weight.detach()
