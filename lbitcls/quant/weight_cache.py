"""Cache of a layer's quantized weight, valid in eval while the values it was computed from stay the same.

The values themselves are compared with a copy: optimizers, loading, `.data`, NumPy, DLPack and other processes may all
write to a weight, and PyTorch's change counter (`_version`) misses most of these writes. Reading two tensors costs a
quarter of LSQ's fake quantization, a tenth of APoT's. On an accelerator the comparison would make every layer wait for
the device, so nothing is cached there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class _Kept:
    value: Tensor
    key: tuple[Any, ...]
    copies: list[Tensor]


class WeightCache:
    """Cache of one tensor, with copies of its sources. Copies and pickles of the cache are empty."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def get(self, key: tuple[Any, ...], sources: Iterable[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """Return `make()`, or its last result if nothing that it depends on has changed.

        Args:
            key: Values other than tensors that the result depends on.
            sources: All tensors that the result depends on.
            make: Function that computes the tensor.
        """
        sources = list(sources)
        if not all(type(source) in _PLAIN for source in sources):  # a tracer's proxies
            return make()
        kept = self._kept  # read once: another thread may replace it
        if kept is not None and kept.key == key and _all_equal(kept.copies, sources):
            return kept.value
        value = make()
        if type(value) is Tensor:
            self._kept = _Kept(value, key, [source.detach().clone() for source in sources])
        return value

    def clear(self) -> None:
        """Drop the cached tensor."""
        self._kept = None

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightCache:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


def keeping_pays(layer: nn.Module, weight: Tensor) -> bool:
    """Return True if `layer` may cache its quantized `weight`: in eval, without gradients, on the CPU, not traced."""
    recorded = layer.training or torch.is_grad_enabled() or torch.jit.is_tracing()
    return not recorded and weight.device.type == "cpu"


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers of `module` (`parameters()` and `buffers()` are as slow as a small quantizer)."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor
    for child in module._modules.values():
        if child is not None:
            yield from tensors_of(child)


def settings_of(module: nn.Module) -> tuple[Any, ...]:
    """Return `module` itself and the plain values among its attributes (bits, modes)."""
    return module, *((k, v) for k, v in module.__dict__.items() if isinstance(v, (bool, int, float, str)))


def _all_equal(copies: list[Tensor], sources: list[Tensor]) -> bool:
    """Return True if values, dtype and layout are the same (the result inherits the latter two)."""
    return len(copies) == len(sources) and all(
        c.dtype == s.dtype and c.shape == s.shape and c.stride() == s.stride() and torch.equal(c, s)
        for c, s in zip(copies, sources, strict=True)
    )
