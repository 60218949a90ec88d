"""Layers that a forward pass goes round: what they are planned to do does not happen.

A module may read a layer's weight itself (`F.linear(x, self.fc.weight)`, a fused kernel) instead of calling the layer;
then no quantizer of the layer is asked, and the product is computed in float. Or nothing uses the layer at all: an
auxiliary head in eval. Names and types of modules do not tell; a forward pass does, by who is called and by what reads
which memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lbitcls.quant.layers import QuantLayer, kind_of
from lbitcls.utils.errors import ConfigError

logger = logging.getLogger("lbitcls")
_SHOWN = 8
_SHAPE_ONLY = ("new_", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "sym_")


@dataclass(frozen=True)
class Bypassed:
    """Full names of the layers that a forward pass went round.

    Attributes:
        read: not called, but their weight was read: they compute in float.
        unused: neither called nor read.
        also_read: called, and their weight was read besides: there it is float.
    """

    read: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    also_read: tuple[str, ...] = ()

    def exclusion(self) -> str:
        """The config's words for leaving the layers that are read float."""
        return f"quant_transformer.exclude_layers={list(self.read)}"


class Watch:
    """What forward passes call and read; see `watching`."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._called: set[str] = set()
        self._read: set[str] = set()
        self.passes = 0

    def result(self) -> Bypassed:
        """What the passes so far went round."""
        uncalled = [name for name in self._layers if name not in self._called]
        return Bypassed(
            tuple(name for name in uncalled if name in self._read),
            tuple(name for name in uncalled if name not in self._read),
            tuple(name for name in self._layers if name in self._called & self._read),
        )


@contextmanager
def watching(model: nn.Module, layers: Mapping[str, nn.Module] | None = None) -> Iterator[Watch]:
    """Watch the forward passes made in this context.

    No hook is attached, since PyTorch's fused kernels step back where there are hooks, and would do so unnoticed.

    Args:
        model: the model.
        layers: those to watch, by full name; None: all quantized layers.
    """
    layers = quantized_layers(model) if layers is None else layers
    watch = Watch(layers)
    own = {name: layer.__dict__.get("forward") for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.__dict__["forward"] = _noting(layer.forward, watch._called, name)
    try:
        with _Readers(layers, watch._read):
            yield watch
    finally:
        for name, layer in layers.items():
            del layer.__dict__["forward"]
            if own[name] is not None:
                layer.__dict__["forward"] = own[name]


def _noting(forward: Callable[..., Tensor], called: set[str], name: str) -> Callable[..., Tensor]:
    def noted(*args: Any, **kwargs: Any) -> Tensor:
        called.add(name)
        with _disable_current_modes():  # a layer may read its own weight
            return forward(*args, **kwargs)

    return noted


class _Readers(TorchDispatchMode):
    """Notes which layers' weights operators read, whatever they call them: views and `.data` are the same memory."""

    def __init__(self, layers: Mapping[str, nn.Module], read: set[str]) -> None:
        super().__init__()
        self._read = read
        self._owners: dict[int, list[tuple[str, int, int]]] = {}
        self._weights = [(name, weight) for name, layer in layers.items() for weight in _weights(layer)]
        for name, weight in self._weights:  # kept alive, so that nothing else takes their memory
            self._owners.setdefault(_memory(weight), []).append((name, *_extent(weight)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (func.is_view or func._schema.name.partition("::")[2].startswith(_SHAPE_ONLY)):
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested:
                    self._read.update(self._owned(value))
        return func(*args, **kwargs)

    def _owned(self, tensor: Tensor) -> Iterator[str]:
        """Names of the layers whose weights lie in the memory of `tensor`."""
        owners = self._owners.get(_memory(tensor))
        if owners and tensor.numel():
            first, last = _extent(tensor)
            yield from (name for name, start, end in owners if start <= last and first <= end)


def _weights(layer: nn.Module) -> Iterator[Tensor]:
    """The weight of a layer, as it holds it, or what parametrizations compute it from."""
    found = [layer._parameters.get("weight"), vars(layer).get("weight")]  # what a hook has computed is no parameter
    if parametrize.is_parametrized(layer, "weight"):
        found += cast(Any, layer).parametrizations.weight.parameters()
    yield from (tensor for tensor in found if isinstance(tensor, Tensor))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first and the last byte of a tensor's elements within its memory."""
    first = tensor.storage_offset()
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(first * tensor.itemsize), int((last + 1) * tensor.itemsize - 1)


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The quantized layers of a model, by full name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLayer)}


def planned_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are quantized, or are of a kind that can be, by full name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer) or kind_of(m) is not None}


@contextmanager
def noticing(model: nn.Module, what: str) -> Iterator[None]:
    """Watch the forward passes in this context, and warn of the layers that they go round, by name.

    A layer that is gone round is marked (`QuantLayer.bypassed`): its size counts as float. Each is warned of once.

    Args:
        model: a model in eval mode; where none of its quantizers is on, nothing is watched.
        what: is done, for the message ("validation").
    """
    layers = quantized_layers(model)
    if not any(_is_on(layer) for layer in layers.values()):
        yield
        return
    with watching(model, layers) as watch:
        yield
    mark(model, watch.result(), what)


@contextmanager
def noticing_once(model: nn.Module, what: str) -> Iterator[None]:
    """As `noticing`, in the first such context of a model alone."""
    if model in _NOTICED:
        yield
        return
    with noticing(model, what):
        yield
    _NOTICED.add(model)


_NOTICED: WeakSet[nn.Module] = WeakSet()


def mark(model: nn.Module, found: Bypassed, what: str) -> None:
    """Mark the layers that were gone round, and no others; warn of those that were not marked before."""
    layers: dict[str, Any] = quantized_layers(model)
    round_them = {*found.read, *found.unused}
    read, unused = ([n for n in names if not layers[n].bypassed] for names in (found.read, found.unused))
    for name, layer in layers.items():
        layer.bypassed = name in round_them
    if read:
        logger.warning(
            "%s: the model reads the weight of %s itself and does not call the layer, so it computes in float there "
            "and not in its planned bits. Call the layer in the model's code, or leave it float: %s",
            *(what, _listed(read), found.exclusion()),
        )
    if unused:
        logger.warning(
            "%s: the forward pass does not use %s; the planned bits mean nothing there, and the size counts as float.",
            *(what, _listed(unused)),
        )
    if found.also_read and found.also_read not in _ALSO_READ:
        _ALSO_READ.add(found.also_read)
        logger.warning(
            "%s: the model also reads the weight of %s itself; there it is float.", what, _listed(found.also_read)
        )


_ALSO_READ: set[tuple[str, ...]] = set()


def refuse_read(found: Bypassed, what: str) -> None:
    """Raise `ConfigError` for layers that compute in float because their weight is read."""
    if found.read:
        raise ConfigError(
            f"{what}: the model reads the weight of {_listed(found.read)} itself and does not call the layer, so no "
            "quantizer of it would be used. Call the layer in the model's code, or leave it float: "
            f"{found.exclusion()}"
        )


def leave_fast_path(model: nn.Module) -> list[str]:
    """Have PyTorch's transformer layers call the quantized layers in them without gradients, too.

    Without gradients `nn.TransformerEncoderLayer` hands its weights to one fused kernel, unless a condition on the
    layer is false. The attributes set here are such conditions, of those modules alone, and decide nothing else.

    Returns:
        Full names of the modules that were changed.
    """
    changed = []
    for name, module in model.named_modules():
        if not quantized_layers(module):
            continue
        if isinstance(module, nn.TransformerEncoderLayer) and module.activation_relu_or_gelu:
            module.activation_relu_or_gelu = 0
            changed.append(name)
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # nested tensors are for the fused kernel alone
    return changed


def _is_on(layer: Any) -> bool:
    return any(q is not None and q.is_enabled for q in (layer.weight_quantizer, layer.input_quantizer))


def _listed(names: Any) -> str:
    names = list(names)
    rest = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
