"""Cross-layer equalization (Nagel et al., 2019, arXiv:1906.04721, section 4.1).

Between two layers that a function with f(s·x) = s·f(x) for s > 0 separates at most (ReLU, pooling), the channels of the
first can be divided by s and the inputs of the second multiplied by it: the network stays the same. With

    s = sqrt(r1 / r2),   r1, r2: largest magnitudes of the channel's weights in the first and the second layer

both have the ranges sqrt(r1 · r2). This helps layers whose channels share one scale, and moves ranges between the
weights and the activations. Several layers may read the first one's output; r2 is then the largest of theirs. A
BatchNorm between must be folded into the first layer (`fold_bn`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.protocols import predictor
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.layers import QuantConv2d, QuantLayer, QuantLinear
from lbitcls.quant.quantizer import Quantizer

Norm = nn.modules.batchnorm._BatchNorm
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
TOLERANCE = 1e-3
"""Largest change of the logits, relative to their largest magnitude, that rounding errors explain."""


@dataclass
class Pair:
    """Layers whose ranges are balanced.

    Attributes:
        first: Name of the layer that computes the channels.
        norm: BatchNorm folded into it, if any.
        readers: Names of the layers that read them.
    """

    first: str
    norm: Norm | None = None
    readers: list[str] = field(default_factory=list)


@torch.no_grad()
def equalize(model: nn.Module, images: Tensor) -> list[Pair]:
    """Balance the ranges of a float model in place, and return the pairs of layers that were balanced.

    A pair whose channels are also read by a function that no module names (an addition) is left unchanged: it would
    change the logits of `images`.

    Args:
        model: Transformed model in eval, before calibration.
        images: Images (N, C, H, W) on which the logits are compared.
    """
    done = []
    with quantizing(model):
        before = predictor(model)(images)
        for pair in find_pairs(model, images):
            scale = _scale(model, pair)
            _rescale(model, pair, scale)
            change = (predictor(model)(images) - before).abs().max() / before.abs().max()
            if change <= TOLERANCE:
                done.append(pair)
            else:
                _rescale(model, pair, 1 / scale)
    return done


def find_pairs(model: nn.Module, images: Tensor) -> list[Pair]:
    """Return the pairs of layers that only homogeneous modules separate, by the tensors of a forward pass."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            calls.append((name, module, inputs[0], output))  # keeps the tensors alive, so that identities are unique

    leaves = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantLayer) or not list(m.children())]
    functions = [(name, module) for name, module in leaves if not isinstance(module, Quantizer)]
    hooks = [module.register_forward_hook(partial(note, name)) for name, module in functions]
    try:
        predictor(model)(images)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [_pair_of(calls, index) for index, call in enumerate(calls) if _can_lead(call[1])]
    return [pair for pair in pairs if pair is not None]


def _pair_of(calls: list[tuple[str, nn.Module, Tensor, Tensor]], index: int) -> Pair | None:
    """Return the pair whose first layer made call number `index`, or None if another module reads its channels."""
    name, layer, _, output = calls[index]
    pair, live = Pair(name), [output]
    for reader, module, x, y in calls[index + 1 :]:
        if not any(x is tensor for tensor in live):
            continue
        if isinstance(module, Norm) and not pair.readers and _is_folded(layer, module):
            pair.norm = module
        elif _can_read(module, x.shape[1]):
            pair.readers.append(reader)
            continue
        elif not isinstance(module, HOMOGENEOUS):
            return None
        live.append(y)
    return pair if pair.readers else None


def _can_lead(module: nn.Module) -> bool:
    return isinstance(module, (QuantConv2d, QuantLinear))


def _can_read(module: nn.Module, channels: int) -> bool:
    if isinstance(module, QuantConv2d):
        return module.groups in (1, channels)
    return isinstance(module, QuantLinear)


def _is_folded(layer: nn.Module, norm: Norm) -> bool:
    return isinstance(layer, QuantConv2d) and any(norm is folded for folded in layer.folded_norm)


def _scale(model: nn.Module, pair: Pair) -> Tensor:
    """Return s (C,); 1 for a channel without weights on one side."""
    first: Any = model.get_submodule(pair.first)
    made = first.weight_to_quantize().abs().flatten(1).amax(1)
    read = torch.stack([_columns(model, name).abs().amax(1) for name in pair.readers]).amax(0)
    scale = (made / read).sqrt()
    return torch.where(scale.isfinite() & (scale > 0), scale, 1.0)


def _columns(model: nn.Module, name: str) -> Tensor:
    """Return a view of the weights that read each input channel, (C, weights)."""
    layer: Any = model.get_submodule(name)
    depthwise = isinstance(layer, QuantConv2d) and layer.groups > 1
    return layer.weight.flatten(1) if depthwise else layer.weight.transpose(0, 1).flatten(1)


def _rescale(model: nn.Module, pair: Pair, scale: Tensor) -> None:
    """Divide the channels of the first layer by `scale`, and multiply the inputs of its readers by it."""
    first: Any = model.get_submodule(pair.first)
    for tensor in (pair.norm.weight, pair.norm.bias) if pair.norm is not None else (first.weight, first.bias):
        if tensor is not None:
            tensor.div_(scale.view(-1, *[1] * (tensor.dim() - 1)))
    for name in pair.readers:
        layer: Any = model.get_submodule(name)
        axis = 0 if isinstance(layer, QuantConv2d) and layer.groups > 1 else 1
        shape = [1] * layer.weight.dim()
        shape[axis] = -1
        layer.weight.mul_(scale.view(shape))
