"""Error of a single quantized layer: measured by enabling its quantizers alone, or estimated from second derivatives.

    kl      KL(float model's predictions, predictions with this layer alone quantized), mean over the images, in nats
    fisher  ½ Σ_i F_ii · (q_i - x_i)² over the layer's weights and inputs, with the Fisher information's diagonal
            F_ii = E[(∂ log p(y) / ∂x_i)²], y drawn from the float model's own predictions

The second is the first's Taylor expansion to second order, without the terms between different values: the gradient is
0 at the float model, and the Hessian is the Fisher information. It takes one backward pass for each image, and none for
each layer. HAWQ-V2 (arXiv:1911.03852) weights the squared error of weights by the mean of the Hessian's diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lbitcls.analysis.measures import output_error
from lbitcls.analysis.passes import in_eval, predict, quantizers_of, weight_quantizer
from lbitcls.protocols import predictor
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.computed_weights import has_computed_weights
from lbitcls.quant.layers import QuantConv2d, QuantLayer
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import track

MEASURES = ("kl", "fisher")


def errors_alone(
    model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], measure: str = "kl", shown: bool = False
) -> dict[str, float]:
    """Return the error of each layer if it alone is quantized, by the grids that `model` has.

    Args:
        model: Calibrated model with the float model's weights.
        names: Quantized layers.
        batches: Images (N, C, H, W), as the model receives them.
        measure: One of `MEASURES`.
        shown: Show a progress bar on a terminal.
    """
    rule = _measured if measure == "kl" else _estimated
    return rule(model, names, batches, shown)


def _measured(model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], shown: bool) -> dict[str, float]:
    found = {}
    with in_eval(model):
        with quantizing(model):
            reference = predict(model, batches)
        for name in track(names, len(names), "quantizing layer by layer", shown):
            with quantizing(model, quantizers_of(model.get_submodule(name))):
                found[name] = max(output_error(reference, predict(model, batches), None).kl, 0.0)
    return found


def _estimated(model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], shown: bool) -> dict[str, float]:
    if has_computed_weights(model):
        raise ConfigError("fisher does not support weights that a hook or a parametrization computes; measure kl.")
    images = [image for batch in batches for image in batch.split(1)]
    generator = torch.Generator().manual_seed(0)
    layers = {name: layer for name, layer in model.named_modules() if name in names and isinstance(layer, QuantLayer)}
    sums = dict.fromkeys(layers, 0.0)
    with _observed(model, layers, sums), torch.enable_grad():
        change = {name: _weight_change(layer) for name, layer in layers.items()}
        for image in track(images, len(images), "estimating layer by layer", shown):
            with quantizing(model):
                log_p = predictor(model)(image).float().log_softmax(1)
            label = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
            log_p[0, int(label)].backward()
            for name, layer in layers.items():
                sums[name] += _square(layer.weight.grad, change[name])
            model.zero_grad(set_to_none=True)
    return {name: found / (2 * len(images)) for name, found in sums.items()}


@contextmanager
def _observed(model: nn.Module, layers: Mapping[str, QuantLayer], sums: dict[str, float]) -> Iterator[None]:
    """Let only the layers' weights require a gradient, and add what the change of each input costs to `sums`."""
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    weights = {id(layer.weight) for layer in layers.values()}

    def watch(name: str, x: Tensor) -> None:
        x.requires_grad_(True)  # the image does not
        if (quantizer := layers[name].input_quantizer) is not None:
            with torch.no_grad(), quantizing(model, [quantizer]):
                change = quantizer(x.detach()) - x.detach()

            def add(grad: Tensor) -> None:
                sums[name] += _square(grad, change)

            x.register_hook(add)

    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: watch(name, x[0])) for name, layer in layers.items()
    ]
    try:
        for parameter in asked:
            parameter.requires_grad_(id(parameter) in weights)
        with in_eval(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, before in asked.items():
            parameter.requires_grad_(before)


@torch.no_grad()
def _weight_change(layer: QuantLayer) -> Tensor | None:
    """Return by how much quantizing changes a layer's weight; None: it stays float."""
    quantizer = weight_quantizer(layer)
    if quantizer is None:
        return None
    weight = layer.weight_to_quantize()
    change = quantizer(weight) - weight
    factor = layer.fold_factor() if isinstance(layer, QuantConv2d) else None
    return change if factor is None else change / factor.view(-1, 1, 1, 1)


def _square(grad: Tensor | None, change: Tensor | None) -> float:
    return 0.0 if grad is None or change is None else float((grad * change).double().square().sum())
