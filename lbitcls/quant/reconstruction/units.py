"""Units of reconstruction: blocks of a network, found by its structure, and single layers elsewhere.

A block is an element of a sequence (`Sequential`, `ModuleList`, `ModuleDict`) that is no such container itself and has
at most `MOST_LAYERS` quantized layers: a residual block, a fire module, a convolution with its BatchNorm. It must be
called once, with one tensor, and return one tensor. Units are in the order in which a forward pass calls them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.protocols import predictor
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.layers import QuantLayer
from lbitcls.utils.errors import ConfigError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MOST_LAYERS = 12
Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Unit:
    """Part of a network that is reconstructed at once.

    Attributes:
        name: Full name of the module.
        layers: Full names of its quantized layers, in the order of their calls.
        norms: Layer → full name of the BatchNorm that reads its output.
    """

    name: str
    layers: tuple[str, ...]
    norms: dict[str, str]


@dataclass
class _Trace:
    """Calls of a forward pass, by module name, and the BatchNorms that read a layer's output."""

    calls: list[str] = field(default_factory=list)
    plain: dict[str, bool] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    outputs: list[tuple[str, Tensor, int]] = field(default_factory=list)

    def enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.calls.append(name)
        if isinstance(module, Norm):
            read = [layer for layer, y, version in self.outputs if y is inputs[0] and y._version == version]
            self.norms.update(dict.fromkeys(read, name))  # not if an activation changed it in place before
        once = self.calls.count(name) == 1 and len(inputs) == 1 and not keywords
        self.plain[name] = once and isinstance(inputs[0], Tensor)

    def leave(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.plain[name] &= isinstance(output, Tensor)
        if isinstance(module, QuantLayer):
            self.outputs.append((name, output, output._version))


def find_units(model: nn.Module, images: Tensor) -> list[Unit]:
    """Return the units of a quantized model, in the order of a forward pass of `images` (N, C, H, W).

    Raises:
        ConfigError: A layer is called several times, or nothing is quantized.
    """
    layers = {name for name, module in model.named_modules() if _has_weight_quantizer(module)}
    blocks = {name: inner for name, module in model.named_modules() if (inner := _layers_of_block(model, name, module))}
    trace = _traced(model, layers | set(blocks), images)
    for name in layers & set(trace.calls):
        if trace.calls.count(name) > 1:
            raise ConfigError(
                f"calibration.reconstruct needs layers that a forward pass calls once; {name} is called "
                f"{trace.calls.count(name)} times. Exclude it: quant_transformer.exclude_layers=['{name}']."
            )
    units: list[Unit] = []
    covered: set[str] = set()
    for name in trace.calls:
        inner = blocks.get(name, ()) if trace.plain[name] else ()
        inside = tuple(call for call in trace.calls if call in (inner or {name} & layers) and call not in covered)
        if inside:
            covered.update(inside)
            units.append(Unit(name, inside, {k: v for k, v in trace.norms.items() if k in inside}))
    if not units:
        raise ConfigError("calibration.reconstruct found no layer with quantized weights; see lbitcls plan.")
    return units


def _has_weight_quantizer(module: nn.Module) -> bool:
    return isinstance(module, QuantLayer) and module.weight_quantizer is not None


def _layers_of_block(model: nn.Module, name: str, module: nn.Module) -> tuple[str, ...]:
    """Return the full names of a block's quantized layers; nothing if the module is no block."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if not name or not isinstance(parent, CONTAINERS) or isinstance(module, QuantLayer):
        return ()
    inner = tuple(f"{name}.{below}" for below, layer in module.named_modules() if _has_weight_quantizer(layer))
    most = 1 if isinstance(module, CONTAINERS) else MOST_LAYERS
    return inner if len(inner) <= most else ()


@torch.no_grad()
def _traced(model: nn.Module, names: set[str], images: Tensor) -> _Trace:
    trace = _Trace()
    watched = [(n, m) for n, m in model.named_modules() if n in names or isinstance(m, Norm)]
    hooks = [*_hooks(trace, watched)]
    try:
        with quantizing(model):
            predictor(model)(images)
    finally:
        for hook in hooks:
            hook.remove()
    trace.calls = [name for name in trace.calls if name in names]
    return trace


def _hooks(trace: _Trace, watched: list[tuple[str, nn.Module]]) -> Iterator[Any]:
    for name, module in watched:
        yield module.register_forward_pre_hook(partial(trace.enter, name), with_kwargs=True)
        yield module.register_forward_hook(partial(trace.leave, name))
