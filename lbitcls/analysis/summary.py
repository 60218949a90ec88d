"""Key findings of a comparison, in sentences. Layer names are in backticks."""

from __future__ import annotations

from lbitcls.analysis.findings import Analysis, LayerReport
from lbitcls.analysis.scan import LayerScan
from lbitcls.analysis.tensors import TensorReport

_CLIPPED = 0.05  # fraction of the inputs; more is worth a sentence
_FEW_LEVELS = 0.5  # fraction of the levels that occur; less is worth a sentence
_MUCH_NOISE = 0.05  # fraction of the squared error
_SHOWN = 3
_BROKEN = 0.5  # fraction of changed classes above which a model without its quantizers is no useful reference


def describe(analysis: Analysis) -> list[str]:
    """Return sentences on the quantized model; none for a single float model."""
    if analysis.everything is None or not analysis.ranked:
        return []
    trained = analysis.basis == "quantized"
    first = _most_dependent(analysis) if trained else _most_expensive(analysis)
    sentences = [first, *((_training(analysis), _together(analysis)) if trained else ())]
    sentences += [_few_levels(analysis), _clipping(analysis), _in_float(analysis)]
    return [sentence for sentence in sentences if sentence]


def _most_expensive(analysis: Analysis) -> str:
    first = analysis.ranked[0]
    scan, everything = _scan(first), analysis.everything
    assert everything is not None
    if not scan.alone.kl:
        return "Quantizing the layers one by one does not change the output on these images."
    total = sum(_scan(layer).alone.kl for layer in analysis.ranked)
    said = (
        f"`{first.name}` is the most sensitive layer: quantized alone, it changes the output by {_nats(scan.alone.kl)} "
        f"(KL divergence), {_percent(scan.alone.kl / total)} of the sum over {len(analysis.ranked)} layers, each alone."
    )
    if everything.changed <= _BROKEN and everything.kl:
        gain = 1 - scan.without.kl / everything.kl
        if gain > 0.01:
            said += f" With this layer alone in float, the divergence is {_percent(gain)} lower."
        else:
            said += " Even so, leaving it alone in float gains nothing: the errors of the others remain."
    return f"{said} {_which_part(first, scan)}".rstrip()


def _which_part(layer: LayerReport, scan: LayerScan) -> str:
    weight, inputs = scan.weight_alone, scan.input_alone
    if weight is None or inputs is None:
        return ""
    parts = f"weight alone {_nats(weight.kl)}, inputs alone {_nats(inputs.kl)}"
    if weight.kl > 3 * inputs.kl:
        return f"The cause is its weight ({parts}). {_outliers(layer.weight, 'weights')}"
    if inputs.kl > 3 * weight.kl:
        return f"The cause is its inputs ({parts}). {_outliers(layer.input, 'inputs')}"
    return f"Both its weight and its inputs contribute ({parts})."


def _outliers(tensor: TensorReport, what: str) -> str:
    """Return a sentence on a few values beyond the grid that cause much of the error, or an empty string."""
    grid = tensor.grid
    if grid is None or grid.clipped_noise is None or grid.clipped_noise < max(_MUCH_NOISE, 10 * grid.clipped):
        return ""
    return (
        f"{_percent(grid.clipped)} of the {what} lie beyond the outermost levels and cause "
        f"{_percent(grid.clipped_noise)} of the squared error."
    )


def _most_dependent(analysis: Analysis) -> str:
    """Return a sentence on the layer of a trained model whose quantizers, switched off, change the output most."""
    first = analysis.ranked[0]
    scan, alone = _scan(first), _scan(first).alone
    if not alone.kl:
        return "Switching the quantizers of any one layer off does not change the output on these images."
    said = (
        f"The output depends most on the quantizers of `{first.name}`: with them off, and all other layers as trained, "
        f"it changes by {_nats(alone.kl)} (KL divergence), with another class for {_percent(alone.changed)} of the "
        f"images.{_accuracy(analysis.top1, alone.top1)}"
    )
    weight, inputs = scan.weight_alone, scan.input_alone
    if weight is not None and inputs is not None:
        said += f" Only its weight's off: {_nats(weight.kl)}; only its inputs': {_nats(inputs.kl)}."
    return said


def _accuracy(before: float | None, after: float | None) -> str:
    """Return a sentence on the top-1 accuracy in float, after a space; empty without labels."""
    if before is None or after is None:
        return ""
    if before == after:
        return f" Top-1 stays at {_percent(before)}."
    why = "more bits may help there" if after > before else "its weights have adapted to their grid"
    return f" Top-1 {'rises' if after > before else 'falls'} from {_percent(before)} to {_percent(after)}: {why}."


def _training(analysis: Analysis) -> str:
    error = analysis.error
    if not analysis.retrained or error is None:
        return ""
    return (
        f"After training, the output differs from the float model's by {_nats(error.kl)}, with another class for "
        f"{_percent(error.changed)} of the images."
    )


def _together(analysis: Analysis) -> str:
    """Return a sentence on all quantizers off at once, where that says that the float weights mean nothing."""
    own = analysis.own_error
    if own is None or own.changed <= _BROKEN:
        return ""
    return (
        f"With all quantizers off at once, the model predicts another class for {_percent(own.changed)} of the images: "
        "its weights have adapted to their grids, and mean little without them."
    )


def _few_levels(analysis: Analysis) -> str:
    found = []
    for layer in analysis.layers:
        for what, tensor in (("weight", layer.weight), ("inputs", layer.input)):
            grid = tensor.grid
            if grid is not None and grid.levels_used < _FEW_LEVELS * grid.levels_available:
                said = f"{what} of `{layer.name}` ({grid.levels_used} of {grid.levels_available})"
                found.append((grid.levels_used / grid.levels_available, said))
    if not found:
        return ""
    named = [text for _, text in sorted(found)[:_SHOWN]]
    more = f"; {len(found)} such grids in all" if len(found) > _SHOWN else ""
    return f"Few levels are used: {_listed(named)}{more}."


def _clipping(analysis: Analysis) -> str:
    """Return a sentence on clipped inputs, not weights: a narrow grid of weights clips by design."""
    inputs = [(layer.input.grid.clipped, layer.name) for layer in analysis.layers if layer.input.grid is not None]
    found = [(clipped, name) for clipped, name in inputs if clipped > _CLIPPED]
    if not found:
        return ""
    clipped, name = max(found)
    rest = f"; {len(found)} layers clip more than {_percent(_CLIPPED)}" if len(found) > 1 else ""
    return f"In `{name}`, {_percent(clipped)} of the inputs are clipped{rest}."


def _in_float(analysis: Analysis) -> str:
    left = [layer for layer in analysis.layers if layer.method is None]
    if not left:
        return ""
    work = sum(layer.bit_operations for layer in left) / max(analysis.totals.bit_operations, 1)
    named = _listed([f"`{layer.name}`" for layer in left[:_SHOWN]]) + (", …" if len(left) > _SHOWN else "")
    return f"{len(left)} of {len(analysis.layers)} layers stay float, {_percent(work)} of the bit-operations: {named}."


def _scan(layer: LayerReport) -> LayerScan:
    assert layer.scan is not None
    return layer.scan


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _nats(kl: float) -> str:
    return f"{kl:.2g} nats" if kl < 0.1 else f"{kl:.2f} nats"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 9.5 or percent == round(percent) else f"{percent:.1f} %"
