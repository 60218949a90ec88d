"""AdaRound (Nagel et al., 2020, arXiv:2004.10568): roundings that minimize a layer's squared error.

Deviations:
- The error comes from second moments of the inputs (`moments`), so every step sees all images; the activation function
  is left out of it. Errors are relative to the nearest rounding's, so that one `decision` factor fits all layers.
- If the bias is corrected afterwards, the mean error does not count.
- White noise of 1 % of the inputs' variance is added, since 200 images do not determine a linear layer of 1,280 inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.reconstruction.moments import Moments, rows_of
from lbitcls.quant.reconstruction.rounding import Roundings, exponent_at, indecision, soft_rounding
from lbitcls.settings.reconstruction import ReconstructConfig


def learn_layer(layer: QuantLayer, moments: Moments, settings: ReconstructConfig) -> Tensor:
    """Return the steps of each weight, of the weight's shape, and leave the layer unchanged.

    Rows for which the nearest rounding is better keep it.

    Args:
        layer: Quantized layer, with its float weight.
        moments: Moments of its inputs, centered if the bias is corrected.
        settings: Options of reconstruction.
    """
    roundings = Roundings(layer)
    moments = moments.damped(rows_of(layer, layer.weight_to_quantize().detach()).double())
    scale = rows_of(layer, roundings.scale.expand_as(roundings.steps))
    nearest = rows_of(layer, roundings.nearest())
    worst = moments.errors((nearest * scale).double())
    _descend(layer, roundings, moments, worst, settings)
    learned = rows_of(layer, roundings.decided())
    better = moments.errors((learned * scale).double()) < worst
    return torch.where(better[..., None], learned, nearest).view_as(roundings.steps)


@torch.enable_grad()
def _descend(
    layer: QuantLayer, roundings: Roundings, moments: Moments, worst: Tensor, settings: ReconstructConfig
) -> None:
    """Minimize the error, relative to `worst` (G, R), and decide each rounding."""
    dtype = roundings.steps.dtype
    unit = 2 / worst.clamp(min=torch.finfo(dtype).tiny)[..., None]
    inputs, cross = moments.inputs.to(dtype), moments.cross.to(dtype)
    factor = settings.decision / math.sqrt(inputs.shape[-1])
    optimizer = torch.optim.Adam([roundings.variable], lr=settings.learning_rate)
    for step in range(settings.steps):
        weight = rows_of(layer, roundings.soft_weight())
        with torch.no_grad():
            slope = (weight @ inputs - cross) * unit.to(dtype)
        loss = (weight * slope).sum()  # its gradient by the weight is that of the error
        beta = exponent_at(step, settings.steps)
        if beta is not None:
            loss = loss + factor * indecision(soft_rounding(roundings.variable), beta).sum()
        (roundings.variable.grad,) = torch.autograd.grad(loss, [roundings.variable])
        optimizer.step()
