"""A layer's quantized weight, kept in eval as long as what it was made from holds the same values.

The values themselves are compared, with a copy: optimizers, loading, `.data`, NumPy, DLPack and other processes may all
write to a weight, and PyTorch's count of changes (`_version`) misses most of them. Reading two tensors costs a quarter
of LSQ's fake quantization, a tenth of APoT's. On an accelerator it would make every layer wait for the device, so
nothing is kept there.
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
    """Holds one tensor, and copies of what it was made from. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def get(self, key: tuple[Any, ...], sources: Iterable[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """`make()`, or its last result where nothing that it depends on has changed since.

        Args:
            key: what it depends on beside tensors.
            sources: all tensors that it depends on.
            make: gives the tensor.
        """
        sources = list(sources)
        if not all(type(source) in _PLAIN for source in sources):  # a tracer's stand-ins
            return make()
        kept = self._kept  # read once: another thread may put something else in its place
        if kept is not None and kept.key == key and _all_equal(kept.copies, sources):
            return kept.value
        value = make()
        if type(value) is Tensor:
            self._kept = _Kept(value, key, [source.detach().clone() for source in sources])
        return value

    def clear(self) -> None:
        """Forget what is kept."""
        self._kept = None

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightCache:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


def keeping_pays(layer: nn.Module, weight: Tensor) -> bool:
    """Whether `layer` may keep what it makes of `weight`: in eval, without gradients, on the CPU, while nothing
    records it."""
    recorded = layer.training or torch.is_grad_enabled() or torch.jit.is_tracing()
    return not recorded and weight.device.type == "cpu"


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of `module` (`parameters()` and `buffers()` take as long as a small quantizer)."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor
    for child in module._modules.values():
        if child is not None:
            yield from tensors_of(child)


def settings_of(module: nn.Module) -> tuple[Any, ...]:
    """`module` itself, and the plain values among its attributes (bits, modes)."""
    return module, *((k, v) for k, v in module.__dict__.items() if isinstance(v, (bool, int, float, str)))


def _all_equal(copies: list[Tensor], sources: list[Tensor]) -> bool:
    """Whether the values are the same, in the same dtype and layout (which the result takes over)."""
    return len(copies) == len(sources) and all(
        c.dtype == s.dtype and c.shape == s.shape and c.stride() == s.stride() and torch.equal(c, s)
        for c, s in zip(copies, sources, strict=True)
    )
