"""Second moments of a layer's inputs, from which its squared error follows for any weight.

A layer with quantized inputs x̂ and weight ŵ imitates t = w · x of the float layer. For every output channel

    E (ŵ · x̂ - t)² = ŵᵀ E[x̂ x̂ᵀ] ŵ - 2 ŵᵀ E[x̂ t] + E[t²]

so AdaRound's error (arXiv:2004.10568, equation 21, with the asymmetric inputs of equation 25 and without the
activation function) needs the images once, not in each of its steps. Groups are separate: G groups, d inputs and R
outputs of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.quant.layers import QuantConv1d, QuantConv2d, QuantLayer, QuantLinear

SUPPORTED = (QuantConv2d, QuantConv1d, QuantLinear)
MOST_POSITIONS = 2**16
"""Positions of a feature map, over all images, that the moments are estimated from."""
DAMPING = 0.01
"""Part of the mean variance that is added to each input's, so that few images do not leave weights undetermined."""


@dataclass
class Moments:
    """Mean products of a layer's inputs and targets, in float64.

    Attributes:
        inputs: E[x̂ x̂ᵀ], (G, d, d).
        cross: E[t x̂ᵀ], (G, R, d).
        squares: E[t²], (G, R).
        mean_input: E[x̂], (G, d).
        mean_target: E[t], (G, R).
    """

    inputs: Tensor
    cross: Tensor
    squares: Tensor
    mean_input: Tensor
    mean_target: Tensor

    def centered(self) -> Moments:
        """Return the moments about the means: the error that remains when the bias corrects the mean error."""
        mean, target = self.mean_input, self.mean_target
        return Moments(
            self.inputs - mean[:, :, None] * mean[:, None, :],
            self.cross - target[:, :, None] * mean[:, None, :],
            self.squares - target.square(),
            torch.zeros_like(mean),
            torch.zeros_like(target),
        )

    def damped(self, weight: Tensor) -> Moments:
        """Return the moments with white noise added to the inputs, whose target is `weight` (G, R, d)."""
        noise = DAMPING * self.inputs.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        eye = torch.eye(self.inputs.shape[1], dtype=self.inputs.dtype, device=self.inputs.device)
        squares = self.squares + noise[:, :, 0] * weight.square().sum(-1)
        return Moments(
            self.inputs + noise * eye, self.cross + noise * weight, squares, self.mean_input, self.mean_target
        )

    def errors(self, weight: Tensor) -> Tensor:
        """Return the mean squared error (G, R) of each output with `weight` (G, R, d)."""
        quadratic = ((weight @ self.inputs) * weight).sum(-1)
        return quadratic - 2 * (weight * self.cross).sum(-1) + self.squares

    def mean_errors(self, weight: Tensor) -> Tensor:
        """Return the mean error (G, R) of each output with `weight` (G, R, d)."""
        return (weight @ self.mean_input[:, :, None]).squeeze(-1) - self.mean_target


def rows_of(layer: QuantLayer, weight: Tensor) -> Tensor:
    """Return a tensor of the weight's shape as (G, R, d)."""
    groups = layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1)


@torch.no_grad()
def moments_of(
    layer: QuantLayer, weight: Tensor, pairs: Iterable[tuple[Tensor, Tensor]], number: int, seed: int
) -> Moments:
    """Return the moments over batches of the layer's inputs.

    Args:
        layer: Layer of a kind in `SUPPORTED`.
        weight: Weight of the float layer, of the layer's shape.
        pairs: Batches of its inputs, as its input quantizer returns them, and of those of the float layer.
        number: Number of images in all batches; with more positions than `MOST_POSITIONS` each gives a sample.
        seed: Seed of the sample.
    """
    target_rows = rows_of(layer, weight)
    generator = torch.Generator().manual_seed(seed)
    each = max(1, MOST_POSITIONS // number)
    sums: list[Tensor] = []
    count = 0
    for quantized, plain in pairs:
        x, y = _patches(layer, quantized), _patches(layer, plain)
        if x.shape[-1] > each:
            chosen = torch.randperm(x.shape[-1], generator=generator)[:each].to(x.device)
            x, y = x[..., chosen], y[..., chosen]
        x, y = (p.permute(1, 2, 0, 3).flatten(2) for p in (x, y))
        target = target_rows @ y
        products = (x @ x.mT, target @ x.mT, target.square().sum(-1), x.sum(-1), target.sum(-1))
        parts = [product.double() for product in products]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        count += x.shape[-1]
    return Moments(*(total / count for total in sums))


def _patches(layer: QuantLayer, x: Tensor) -> Tensor:
    """Return the inputs of each output position (N, G, d, L)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)[:, None]
    conv: nn.modules.conv._ConvNd = layer  # type: ignore[assignment]  # `SUPPORTED`
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    flat = x.dim() == 3  # Conv1d
    kernel, dilation, stride = (
        (*setting, 1) if flat else setting for setting in (conv.kernel_size, conv.dilation, conv.stride)
    )
    columns = F.unfold(x[..., None] if flat else x, kernel, dilation=dilation, stride=stride)
    return columns.view(len(x), conv.groups, -1, columns.shape[-1])
