"""Layers that a forward pass bypasses, so that their plan has no effect.

A module may read a layer's weight itself (`F.linear(x, self.fc.weight)`, a fused kernel) instead of calling the layer;
then the layer's quantizers do not run, and the product is computed in float. Or nothing uses the layer at all: an
auxiliary head in eval. Module names and types do not reveal this; a forward pass does, by which modules it calls and
which memory it reads.
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
    """Full names of the layers that a forward pass bypassed.

    Attributes:
        read: Layers that were not called, but whose weight was read: they compute in float.
        unused: Layers that were neither called nor read.
        also_read: Layers that were called and whose weight was also read, in float.
    """

    read: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    also_read: tuple[str, ...] = ()

    def exclusion(self) -> str:
        """Return the config setting that keeps the layers in `read` float."""
        return f"quant_transformer.exclude_layers={list(self.read)}"


class Watch:
    """Record of what forward passes call and read; see `watching`."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._called: set[str] = set()
        self._read: set[str] = set()
        self.passes = 0

    def result(self) -> Bypassed:
        """Return the layers that all passes so far bypassed."""
        uncalled = [name for name in self._layers if name not in self._called]
        return Bypassed(
            tuple(name for name in uncalled if name in self._read),
            tuple(name for name in uncalled if name not in self._read),
            tuple(name for name in self._layers if name in self._called & self._read),
        )


@contextmanager
def watching(model: nn.Module, layers: Mapping[str, nn.Module] | None = None) -> Iterator[Watch]:
    """Watch the forward passes in this context.

    No hook is attached: hooks would silently turn off PyTorch's fused kernels.

    Args:
        model: Model to watch.
        layers: Layers to watch, by full name; None: all quantized layers.
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
    """Mode that records which layers' weights operators read, by memory: views and `.data` count as well."""

    def __init__(self, layers: Mapping[str, nn.Module], read: set[str]) -> None:
        super().__init__()
        self._read = read
        self._owners: dict[int, list[tuple[str, int, int]]] = {}
        self._weights = [(name, weight) for name, layer in layers.items() for weight in _weights(layer)]
        for name, weight in self._weights:  # kept alive, so that nothing else reuses their memory
            self._owners.setdefault(_memory(weight), []).append((name, *_extent(weight)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (func.is_view or func._schema.name.partition("::")[2].startswith(_SHAPE_ONLY)):
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested:
                    self._read.update(self._owned(value))
        return func(*args, **kwargs)

    def _owned(self, tensor: Tensor) -> Iterator[str]:
        """Yield the names of the layers whose weights share memory with `tensor`."""
        owners = self._owners.get(_memory(tensor))
        if owners and tensor.numel():
            first, last = _extent(tensor)
            yield from (name for name, start, end in owners if start <= last and first <= end)


def _weights(layer: nn.Module) -> Iterator[Tensor]:
    """Yield the weight of a layer as stored, or the tensors that parametrizations compute it from."""
    found = [layer._parameters.get("weight"), vars(layer).get("weight")]  # one computed by a hook is not a parameter
    if parametrize.is_parametrized(layer, "weight"):
        found += cast(Any, layer).parametrizations.weight.parameters()
    yield from (tensor for tensor in found if isinstance(tensor, Tensor))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first and the last byte of a tensor's elements within its storage."""
    first = tensor.storage_offset()
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(first * tensor.itemsize), int((last + 1) * tensor.itemsize - 1)


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the quantized layers of a model, by full name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLayer)}


def planned_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that are or can be quantized, by full name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer) or kind_of(m) is not None}


@contextmanager
def noticing(model: nn.Module, what: str) -> Iterator[None]:
    """Watch the forward passes in this context, and warn about the layers that they bypass, by name.

    A bypassed layer is marked (`QuantLayer.bypassed`): its size counts as float. Each layer is reported once.

    Args:
        model: Model in eval mode; if none of its quantizers is on, nothing is watched.
        what: Activity named in the message ("validation").
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
    """Do what `noticing` does, but only in a model's first such context."""
    if model in _NOTICED:
        yield
        return
    with noticing(model, what):
        yield
    _NOTICED.add(model)


_NOTICED: WeakSet[nn.Module] = WeakSet()


def mark(model: nn.Module, found: Bypassed, what: str) -> None:
    """Mark exactly the layers that were bypassed; warn about those that were not marked before."""
    layers: dict[str, Any] = quantized_layers(model)
    round_them = {*found.read, *found.unused}
    read, unused = ([n for n in names if not layers[n].bypassed] for names in (found.read, found.unused))
    for name, layer in layers.items():
        layer.bypassed = name in round_them
    if read:
        logger.warning(
            "%s: The model reads the weight of %s itself without calling the layer, so the product is computed in "
            "float, not in the planned bits. Call the layer in the model's code, or keep it float: %s",
            *(what, _listed(read), found.exclusion()),
        )
    if unused:
        logger.warning(
            "%s: The forward pass does not use %s; the planned bits have no effect, and the size counts as float.",
            *(what, _listed(unused)),
        )
    if found.also_read and found.also_read not in _ALSO_READ:
        _ALSO_READ.add(found.also_read)
        logger.warning("%s: The model also reads the weight of %s itself, in float.", what, _listed(found.also_read))


_ALSO_READ: set[tuple[str, ...]] = set()


def refuse_read(found: Bypassed, what: str) -> None:
    """Raise `ConfigError` if layers compute in float because the model reads their weight."""
    if found.read:
        raise ConfigError(
            f"{what}: the model reads the weight of {_listed(found.read)} itself without calling the layer, so its "
            "quantizers would not be used. Call the layer in the model's code, or keep it float: "
            f"{found.exclusion()}"
        )


def leave_fast_path(model: nn.Module) -> list[str]:
    """Make PyTorch's transformer layers call their quantized layers even without gradients.

    Without gradients `nn.TransformerEncoderLayer` passes its weights to one fused kernel, unless a condition on the
    layer is false. The attributes set here are such conditions, for these modules only, and have no other effect.

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
            module.use_nested_tensor = False  # only the fused kernel uses nested tensors
    return changed


def _is_on(layer: Any) -> bool:
    return any(q is not None and q.is_enabled for q in (layer.weight_quantizer, layer.input_quantizer))


def _listed(names: Any) -> str:
    names = list(names)
    rest = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
