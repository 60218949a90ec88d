"""Values that an autograd function keeps for its backward pass: tensors, and numbers among them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def keep(ctx: Any, *values: Tensor | float) -> None:
    """Keep values for `kept`, in the forward pass; `ctx.save_for_backward` takes tensors only."""
    ctx.save_for_backward(*(value for value in values if isinstance(value, Tensor)))
    ctx.numbers = tuple(None if isinstance(value, Tensor) else value for value in values)


def kept(ctx: Any) -> list[Any]:
    """Return the values, in the backward pass."""
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if number is None else number for number in ctx.numbers]
