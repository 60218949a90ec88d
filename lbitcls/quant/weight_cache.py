"""A layer's quantized weight, kept in eval as long as nothing that it was made from has changed.

Whether it has is read from the tensors themselves: their identity, and PyTorch's count of the changes made to each
(`_version`), which optimizers, `copy_`, loading and moving averages advance. Writing through `.data`, fused optimizers
and collectives advance nothing. Hence a forward pass with gradients, `train()` and `eval()` forget what is kept; who
writes in such a way between two passes without gradients calls `eval()` after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Mark = tuple[Any, ...]


@dataclass(frozen=True)
class _Kept:
    value: Tensor
    sources: list[Tensor]
    aliases: list[Tensor]  # hold the memory, so that no other tensor can come to lie at the same address
    marks: list[Mark]


class WeightCache:
    """Holds one tensor and what it was made from. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def get(self, sources: Iterable[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """`make()`, or its last result where the `sources`, all tensors that it depends on, are as they were then."""
        sources = list(sources)
        marks = _marks(sources)
        if marks is None:
            return make()
        kept = self._kept  # read once: another thread may put something else in its place
        if kept is not None and kept.marks == marks and all(map(_same, kept.sources, sources)):
            return kept.value
        value = make()
        if type(value) is Tensor:  # not the stand-ins of a tracer
            self._kept = _Kept(value, sources, [source.detach() for source in sources], marks)
        return value

    def clear(self) -> None:
        """Forget what is kept."""
        self._kept = None

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightCache:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


def keeping_pays(layer: nn.Module, weight: Tensor) -> bool:
    """Whether `layer` may keep what it makes of `weight`: in eval, without gradients, while nothing records it."""
    if layer.training or torch.is_grad_enabled() or torch.jit.is_tracing():
        return False
    if weight.is_cuda:
        return not torch.cuda.is_current_stream_capturing()
    return not weight.is_shared()  # another process may change it unseen


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of `module` (`parameters()` and `buffers()` take as long as a small quantizer)."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor
    for child in module._modules.values():
        if child is not None:
            yield from tensors_of(child)


def _marks(sources: Iterable[Tensor]) -> list[Mark] | None:
    """What changes when a tensor does; None where one does not count its changes."""
    try:
        return [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype) for t in sources]
    except RuntimeError:  # tensors made in inference mode
        return None


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other
