"""Start and continuations of promises: what PyTorch's functions do with the result of an integer convolution.

A continuation has the arguments of its PyTorch function, returns NotImplemented for what it does not continue, and runs
without `__torch_function__`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lbitcls.quant.kernels import norm
from lbitcls.quant.kernels.norm import Clip
from lbitcls.quant.kernels.norm_autograd import MaxPool, Promise
from lbitcls.quant.pending import CONTINUATIONS, Pending, Produced, Watched, is_nchw

MOST_PLACES = 255
"""Places in a window of a pooling that a byte can tell apart."""


def produced(y: Tensor, nchw: bool) -> Tensor:
    """Return the result of an integer convolution, a `Produced` tensor if that can be continued.

    Args:
        y: The result, (N, C, H, W), channels_last.
        nchw: Whether PyTorch's convolution would have returned an NCHW tensor.
    """
    if not isinstance(y, Produced) and (not y.requires_grad or y.dtype is not torch.float32):
        return y.contiguous() if nchw else y
    result: Produced = y if isinstance(y, Produced) else _Identity.apply(y)
    result.nchw = nchw
    return result


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return Produced.wrap(y.detach())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    z, pixels = input, input.numel() // max(input.shape[1], 1)
    usable = type(z) is Produced and z.known and z.same_hooks() and training is True and pixels > 1 and eps > 0
    channels = input.shape[1]
    if not usable or not torch.is_grad_enabled() or not all(_is_vector(v, channels) for v in (weight, bias)):
        return NotImplemented
    if not all(v is None or v.shape == (channels,) for v in (running_mean, running_var)):
        return NotImplemented
    assert weight is not None and bias is not None
    with torch.no_grad():
        stats = norm.statistics(z.data_alias, weight, bias, eps)
        # Through `data`, because PyTorch's normalization does not count these changes as changes in place either.
        if running_mean is not None:
            running_mean.data.lerp_(stats[0].to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = stats[1] * (pixels / (pixels - 1))
            running_var.data.lerp_(unbiased.to(running_var.dtype), momentum)
    return Pending.of(Promise(z, weight, bias, None, z.data_alias, None, stats, Clip()), z.nchw)


def _is_vector(x: Any, size: int) -> bool:
    ordinary = isinstance(x, Tensor) and not isinstance(x, Watched)
    return ordinary and x.dtype is torch.float32 and x.shape == (size,) and x.is_contiguous()


def _open_promise(y: Any) -> Promise | None:
    """Return the promise of a pending tensor that can be continued."""
    return y.promise if isinstance(y, Pending) and torch.is_grad_enabled() and y.same_hooks() else None


def _clip(y: Any, cap: float, inplace: bool) -> Any:
    promise = _open_promise(y)
    if promise is None or promise.clip.cap is not None:
        return NotImplemented
    y.continued = True
    return Pending.of(replace(promise, clip=Clip(cap)), y.nchw, y if inplace else None)


def _relu(input: Any, inplace: bool = False) -> Any:
    return _clip(input, torch.inf, inplace)


def _relu6(input: Any, inplace: bool = False) -> Any:
    return _clip(input, 6.0, inplace)


def _hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    return _clip(input, float(max_val), inplace) if min_val == 0 and max_val > 0 else NotImplemented


def _add(input: Any, other: Any, *rest: Any, alpha: float = 1, out: Any = None) -> Any:
    if rest or alpha != 1 or out is not None:
        return NotImplemented
    added = _add_to(input, other)
    return _add_to(other, input, first=False) if added is NotImplemented else added


def _add_in_place(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return _add_to(input, other, inplace=True) if alpha == 1 else NotImplemented


def _add_to(y: Any, other: Any, first: bool = True, inplace: bool = False) -> Any:
    """Continue `y`, which is the `first` summand or the second: the first one decides the order of the memory."""
    promise = _open_promise(y)
    if promise is None or promise.clip.cap is not None or promise.shortcut is not None or y is other:
        return NotImplemented
    ordinary = isinstance(other, Tensor) and other.layout is torch.strided and other.dtype is torch.float32
    if not ordinary or other.shape != y.shape:
        return NotImplemented
    if isinstance(other, Pending):
        other.fill()
    if isinstance(other, Watched) and other.known and other.same_hooks():
        data = other.data_alias
    else:
        data = other.detach().clone(memory_format=torch.channels_last)
    y.continued = True
    nchw = is_nchw(y if first else other)
    shortcut = other if isinstance(other, Watched) or not is_nchw(other) else _NchwGradient.apply(other)
    return Pending.of(replace(promise, shortcut=shortcut, shortcut_data=data), nchw, y if inplace else None)


class _NchwGradient(torch.autograd.Function):
    """Identity whose gradient is an NCHW tensor, as PyTorch's addition passes it to a function of the user's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


def _max_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    promise = _open_promise(input)
    window = norm.Window(
        _pair(kernel_size), _pair(kernel_size if stride is None or stride == [] else stride), _pair(padding)
    )
    usual = _pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    usual &= min(window.stride) > 0 and min(window.padding) >= 0
    usual &= all(2 * p <= k for p, k in zip(window.padding, window.kernel)) and math.prod(window.kernel) <= MOST_PLACES
    if promise is None or promise.shortcut is not None or not usual or min(window.output(input.shape)) < 1:
        return NotImplemented
    with torch.no_grad():
        pooled = norm.max_pool(promise.z_data, promise.stats, promise.clip, window)
    if pooled is None:
        return NotImplemented
    input.continued = True
    y: Produced = MaxPool.apply(*promise.sources[:3], promise, window, pooled, Produced.wrap)
    y.nchw = input.nchw
    return y


def _pair(value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return (pair * 2 if len(pair) == 1 else pair) if len(pair) < 3 else (0, 0)  # PyTorch's error says what is wrong


for _functions, _continuation in (
    ((F.batch_norm,), _batch_norm),
    ((F.relu, torch.relu, Tensor.relu), _relu),
    ((torch.relu_, Tensor.relu_), functools.partial(_relu, inplace=True)),
    ((F.relu6,), _relu6),
    ((F.hardtanh,), _hardtanh),
    ((torch.add, Tensor.add), _add),
    ((Tensor.add_,), _add_in_place),
    ((F.max_pool2d,), _max_pool),
):
    CONTINUATIONS.update(dict.fromkeys(_functions, _continuation))
