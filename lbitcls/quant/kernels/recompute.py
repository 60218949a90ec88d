"""Quantized copies that the backward pass makes again instead of keeping.

A layer's operator saves its quantized input and weight for the backward pass, beside the float ones that the
quantizers save: one and a half times the memory of a float layer. `recomputing` keeps them out: where the operator
saves a tensor that a quantizer made, only how to make it again is saved. The values are bit-equal.
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
    """How to make a saved tensor again: a function without arguments, and the view that was saved."""

    make: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]


def recomputing(operation: Callable[[], Tensor], *quantized: tuple[Tensor, Callable[[], Tensor] | None]) -> Tensor:
    """Run `operation`, saving of the quantized tensors that it uses only how to make them again.

    Args:
        operation: computes a tensor from the quantized ones.
        quantized: each with the function that makes it again; None: it is saved as usual.
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
    """Whether to make tensors again: with fused kernels, outside of a compiled model (which decides by itself)."""
    return selection.fused_now()


def _unpack(saved: Any) -> Tensor:
    if not isinstance(saved, Recipe):
        return saved
    with torch.no_grad():
        return saved.make().as_strided(saved.size, saved.stride)
