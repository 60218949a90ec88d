"""Quantized copies that the backward pass recomputes instead of keeping.

A layer's operator saves its quantized input and weight for the backward pass, in addition to the float ones that the
quantizers save: one and a half times the memory of a float layer. `recomputing` avoids this: for a tensor that a
quantizer made, it saves only a recipe to recompute it. The values are bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lbitcls.quant.kernels import selection


@dataclass(frozen=True)
class Recipe:
    """Recipe for a saved tensor: a function without arguments that recomputes it, and the view that was saved."""

    make: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]


def recomputing(operation: Callable[[], Tensor], *quantized: tuple[Tensor, Callable[[], Tensor] | None]) -> Tensor:
    """Run `operation`, saving only recipes for the quantized tensors that it uses.

    Args:
        operation: Function that computes a tensor from the quantized ones.
        quantized: Quantized tensors, each with the function that recomputes it; None: it is saved as usual.
    """
    makers = {tensor.data_ptr(): make for tensor, make in quantized if make is not None}
    if not makers or not torch.is_grad_enabled():
        return operation()

    def pack(tensor: Tensor) -> Any:
        make = makers.get(tensor.data_ptr())
        return tensor if make is None else Recipe(make, tensor.size(), tensor.stride())

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        return operation()


def worthwhile() -> bool:
    """Return True if recomputing pays: with fused kernels, outside a compiled model (which decides for itself)."""
    return selection.fused_now()


def _unpack(saved: Any) -> Tensor:
    if not isinstance(saved, Recipe):
        return saved
    with torch.no_grad():
        return saved.make().as_strided(saved.size, saved.stride)
