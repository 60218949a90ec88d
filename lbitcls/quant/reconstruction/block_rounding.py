"""Roundings of a block learned together, with the scales of its inputs (BRECQ, Li et al., 2021, arXiv:2102.05426).

    minimize E ||block(x̃; ŵ) - y||² + regularizer over the roundings and the parameters of the input quantizers

y is the float block's output. In every step each activation stays float with probability `drop`, in the block and at
its input, so that the roundings suit activations with and without rounding errors (QDrop, Wei et al., 2022,
arXiv:2203.05740).

Deviations:
- The squared error is not weighted by the Fisher information, which needs labels and gradients of the whole network.
- It is relative to the error of nearest rounding, so that one `decision` factor fits all blocks.
- The learning rate of a scale is relative to its value, and falls to 0 by a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant.kernels.selection import restored_kernels, select_kernels
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.reconstruction.rounding import (
    Roundings,
    exponent_at,
    indecision,
    soft_rounding,
    weight_quantizer,
)
from lbitcls.quant.reconstruction.unit_inputs import Cache
from lbitcls.settings.reconstruction import ReconstructConfig


@torch.enable_grad()
def learn_block(
    unit: nn.Module, layers: list[QuantLayer], cache: Cache, settings: ReconstructConfig, seed: int
) -> list[Tensor]:
    """Return the steps of each layer's weights, leave the weights unchanged, and learn the input quantizers in place.

    Args:
        unit: Block of the quantized model, in eval.
        layers: Its layers with quantized weights.
        cache: Inputs and float outputs of the block.
        settings: Options of reconstruction.
        seed: Seed of the batches and the dropped activations.
    """
    generator = torch.Generator(cache.targets.device).manual_seed(seed)
    worst = _error(unit, cache, settings.batch_size)
    found = [Roundings(layer) for layer in layers]
    inputs = [layer.input_quantizer for layer in layers if layer.input_quantizer is not None]
    ranges = [p for quantizer in inputs for p in quantizer.parameters(recurse=False) if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [r.variable for r in found], "lr": settings.learning_rate}]
    groups += [{"params": [p], "lr": settings.range_learning_rate * _size(p)} for p in ranges]
    optimizer = torch.optim.Adam(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    with restored_kernels(), _imitating(layers, found), _dropping(inputs, settings.drop, generator):
        select_kernels("plain")  # compiling takes longer than it saves here, and the hooks replace what is compiled
        for step in range(settings.steps):
            loss = _loss(unit, cache, settings, generator) / worst
            beta = exponent_at(step, settings.steps)
            if beta is not None:
                loss = loss + settings.decision * sum(_indecision(r, beta) for r in found) / len(found)
            _step(optimizer, loss, rates, math.cos(math.pi / 2 * step / settings.steps) ** 2)
    return [r.decided() for r in found]


def _loss(unit: nn.Module, cache: Cache, settings: ReconstructConfig, generator: torch.Generator) -> Tensor:
    """Return the squared error on a random batch, whose inputs are a mixture of quantized and float ones."""
    device = cache.targets.device
    chosen = torch.randperm(len(cache.targets), generator=generator, device=device)[: settings.batch_size]
    x = mixed(cache.quantized[chosen], cache.plain[chosen], settings.drop, generator)
    return (unit(x) - cache.targets[chosen]).square().mean()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, rates: list[float], factor: float) -> None:
    """Update the parameters; the learning rates of ranges, all groups but the first, are multiplied by `factor`."""
    for group, rate in list(zip(optimizer.param_groups, rates, strict=True))[1:]:
        group["lr"] = rate * factor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def _indecision(roundings: Roundings, beta: float) -> Tensor:
    """Return the regularizer of a layer, on the scale of an error relative to that of nearest rounding."""
    h = soft_rounding(roundings.variable)
    return indecision(h, beta).sum() / (len(h) * math.sqrt(h[0].numel()))


def _size(parameter: Tensor) -> float:
    return float(parameter.detach().abs().mean().clamp(min=torch.finfo(parameter.dtype).tiny))


@torch.no_grad()
def _error(unit: nn.Module, cache: Cache, batch_size: int) -> Tensor:
    """Return the block's mean squared error with its current weights."""
    total = cache.targets.new_zeros(())
    for x, y in zip(cache.quantized.split(batch_size), cache.targets.split(batch_size), strict=True):
        total += (unit(x.clone()) - y).square().mean() * len(x)  # it may work in place
    return (total / len(cache.targets)).clamp(min=torch.finfo(total.dtype).tiny)


def mixed(quantized: Tensor, plain: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Return `quantized` with a fraction `drop` of its elements, drawn at random, from `plain`."""
    if drop == 0:
        return quantized
    drawn = torch.rand(quantized.shape, generator=generator, device=quantized.device)
    return torch.where(drawn < drop, plain, quantized)


@contextmanager
def _imitating(layers: list[QuantLayer], roundings: list[Roundings]) -> Iterator[None]:
    """Let the layers compute with the soft weights."""

    def replace(made: Roundings, quantizer: Quantizer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        quantizer.take_recipe()  # it would recompute the ordinary weight
        return made.soft_weight().to(output.dtype)

    pairs = zip(layers, roundings, strict=True)
    hooks = [weight_quantizer(layer).register_forward_hook(partial(replace, made)) for layer, made in pairs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _dropping(quantizers: list[Quantizer], drop: float, generator: torch.Generator) -> Iterator[None]:
    """Let each activation pass the quantizers in float with probability `drop`."""

    def replace(quantizer: Quantizer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        quantizer.take_recipe()
        return mixed(output, inputs[0], drop, generator)

    hooks = [quantizer.register_forward_hook(replace) for quantizer in quantizers] if drop else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
