"""Weights that PyTorch's utilities compute before a forward pass, and copies of models that have such weights.

    torch.nn.utils.spectral_norm, weight_norm, prune    a forward pre-hook sets the attribute `weight`
    torch.nn.utils.parametrize                          a property computes it on every read

A tensor set by a hook is stale after loading or training, and `copy.deepcopy` rejects it while gradients pass through
it. Code that reads a weight without a forward pass calls `settle` first, or uses a `plain_copy`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lbitcls.utils.errors import ConfigError

_LEFT_BEHIND: dict[type, tuple[str, ...]] = {
    SpectralNorm: ("_orig", "_u", "_v"),
    WeightNorm: ("_g", "_v"),
    prune.BasePruningMethod: ("_orig", "_mask"),
}
"""Hook types that compute a tensor → suffixes, after the tensor's name, of the tensors it is computed from."""


def has_computed_weights(model: nn.Module) -> bool:
    """Return True if a PyTorch hook or parametrization computes a tensor of a module of `model`."""
    return any(parametrize.is_parametrized(module) or any(_hooks(module)) for module in model.modules())


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Let hooks compute their tensors, as a forward pass in the model's mode does; parametrizations need no call."""
    for module in model.modules():
        for _, hook, _ in _hooks(module):
            hook(module, ())


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy of `model`; tensors computed with gradients are copied without them.

    Raises:
        ConfigError: A part of the model cannot be copied.
    """
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _computed_tensors(model)}
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:  # it contains a tensor or an object that PyTorch or Python cannot copy
        raise ConfigError(
            f"{type(model).__name__} cannot be copied: {error} Define __deepcopy__ in the module that contains it, or "
            "keep it outside the model."
        ) from error


@torch.no_grad()
def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in eval, on the CPU, in float32, with computed tensors as ordinary parameters.

    Their values are those that a forward pass in eval computes.

    Raises:
        ConfigError: A part of the model cannot be copied.
    """
    plain = copy_model(model).cpu().float().eval()
    settle(plain)
    for module in list(plain.modules()):
        for key, hook, suffixes in list(_hooks(module)):
            _keep_result(module, key, _tensor_name(hook), suffixes)
        if parametrize.is_parametrized(module):
            _drop_parametrizations(module)
    return plain


def _hooks(module: nn.Module) -> Iterator[tuple[int, Any, tuple[str, ...]]]:
    """Yield hooks that compute a tensor: key, hook, and name suffixes of the tensors it is computed from."""
    for key, hook in module._forward_pre_hooks.items():
        for kind, suffixes in _LEFT_BEHIND.items():
            if isinstance(hook, kind):
                yield key, hook, suffixes


def _tensor_name(hook: Any) -> str:
    return hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name


def _keep_result(module: nn.Module, key: int, name: str, suffixes: tuple[str, ...]) -> None:
    value = getattr(module, name)
    del module._forward_pre_hooks[key]
    delattr(module, name)
    for suffix in suffixes:
        module._parameters.pop(name + suffix, None)
        module._buffers.pop(name + suffix, None)
    module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))


def _drop_parametrizations(module: Any) -> None:
    """Do what `remove_parametrizations` does, without removing the property from the module that was copied."""
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _computed_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield tensors in the modules' attributes and containers that were computed with gradients."""
    waiting, seen = [value for module in model.modules() for value in vars(module).values()], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
