"""Gradients that cannot be differentiated again, for formulas whose backward pass autograd must not record."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


class _Refusing(torch.autograd.Function):
    """Identity whose gradient is an error."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        raise RuntimeError(
            "a layer that multiplies integers in training has no second derivative; for create_graph=True, call "
            "lbitcls.quant.select_kernels('plain')."
        )


def differentiable_once(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Return the backward pass of an autograd function, with results that refuse a second derivative.

    `torch.autograd.function.once_differentiable` refuses it only where the incoming gradient requires one, so it is
    silently 0 for a sum.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor | None) -> Gradients:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            gradients = backward(ctx, *grads)
        anchor = torch.zeros((), requires_grad=True)
        given = iter(_Refusing.apply(anchor, *(g for g in gradients if g is not None)))
        return tuple(None if g is None else next(given) for g in gradients)

    return once
