"""Kernels of batch normalization fused with what follows it: addition, ReLU and quantization; on a CPU.

    y = clip(z · a + b [+ shortcut], 0, cap),   codes = steps of y on the input quantizer's grid

`a` and `b` are made of the batch's statistics. The forward pass reads `z` once and writes codes; the backward pass
reads `z` twice, and computes everything else again. Statistics are sums in double of blocks, less a value near the
mean: as accurate as PyTorch's for NCHW tensors, while its own for channels_last ones are not.

Every kernel has two forms: C++ (`native`), for formulas that clip, round and pass gradients straight through
(`Elementwise.sums`), and a function of matrices (pixels, channels) that inductor compiles, for any formula. Tensors
are float32, (N, C, H, W), dense and channels_last.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lbitcls.quant.kernels import native, selection
from lbitcls.quant.kernels.elementwise import Elementwise
from lbitcls.quant.kernels.scratch import scratch


class Clip(NamedTuple):
    """Activation function after a normalization: none, or clipping to the range from 0 to `cap` (inf: ReLU)."""

    cap: float | None = None

    @property
    def arguments(self) -> tuple[int, float]:
        """Arguments of the C++ kernels."""
        return int(self.cap is not None), math.inf if self.cap is None else self.cap

    def __call__(self, y: Tensor) -> Tensor:
        """Apply the function; NaN stays NaN."""
        return y if self.cap is None else torch.clamp(y, 0.0, None if self.cap == math.inf else self.cap)

    def gradient(self, grad: Tensor, y: Tensor) -> Tensor:
        """Return the gradient before clipping; `y` may be clipped or not."""
        if self.cap is None:
            return grad
        inside = y > 0 if self.cap == math.inf else (y > 0) & (y < self.cap)
        return torch.where(inside, grad, 0.0)


class Grid(NamedTuple):
    """Input quantizer, as the kernels need it."""

    formula: Elementwise
    parameters: tuple[Tensor, ...]  # of the formula, scale first, each of shape ()
    low: Tensor  # smallest number of steps, which becomes code 0; shape ()
    span: int  # largest code

    @property
    def arguments(self) -> tuple[float, float, float]:
        """Arguments of the C++ kernels: scale and bounds in steps."""
        low = float(self.low)
        return float(self.parameters[0]), low, low + self.span


NO_GRID = (1.0, 0.0, 0.0)


class Sums(NamedTuple):
    """Results of the first backward pass."""

    grad: Tensor  # gradient of the normalized tensor
    rows: Tensor  # (4, C): gradients of gamma and beta, and two coefficients for the second pass
    steps: (
        Tensor | None
    )  # quantized activation in steps (uint8: steps above `low`), valid until the next call (`scratch`)
    parameters: tuple[Tensor, ...]  # gradients of those parameters of the grid that have one


def statistics(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Return mean, biased variance, 1 / sqrt(variance + eps), `a` and `b` as rows: (5, C)."""
    kernels = native.library()
    if kernels is None:
        return _compiled(_statistics)(_rows(z), gamma.detach(), beta.detach(), eps)
    stats = z.new_empty(5, z.shape[1])
    at = native.address
    kernels.statistics(at(z), *_size(z), at(gamma.contiguous()), at(beta.contiguous()), eps, at(stats), _threads())
    return stats


def activate(z: Tensor, shortcut: Tensor | None, out: Tensor, stats: Tensor, clip: Clip) -> None:
    """Fill `out` with the activation."""
    kernels, at = native.library(), native.address
    if kernels is None:
        y = _compiled(_activation, clip)(_rows(z), _rows(shortcut), stats)
        _rows(out).copy_(y)
        return
    constants = (at(stats[3]), at(stats[4]), *clip.arguments, *NO_GRID)
    kernels.activate(at(z), at(shortcut), at(out), None, *constants, *_size(z), _threads())


def activate_codes(
    z: Tensor, shortcut: Tensor | None, out: Tensor | None, stats: Tensor, clip: Clip, grid: Grid
) -> tuple[Tensor, Tensor | bool]:
    """Return the activation's codes, uint8, and whether any value is NaN; fill `out` with the values if given.

    The codes are valid until the next call in this thread (`scratch`).
    """
    kernels, at = native.library(), native.address
    if kernels is None or grid.formula.sums is None:
        function = _compiled(_activation_codes, clip, grid.formula)
        y, codes, undefined = function(_rows(z), _rows(shortcut), stats, grid.low, *_constants(grid))
        if out is not None:
            _rows(out).copy_(y)
        return image(codes, z.shape), undefined
    codes = scratch(z, torch.uint8)
    constants = (at(stats[3]), at(stats[4]), *clip.arguments, *grid.arguments)
    undefined = kernels.activate(at(z), at(shortcut), at(out), at(codes), *constants, *_size(z), _threads())
    return codes, bool(undefined)


def backward_sums(
    z: Tensor,
    out: Tensor | None,
    grad: Tensor | None,
    grad_out: Tensor | None,
    stats: Tensor,
    clip: Clip,
    grid: Grid | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sums:
    """Compute everything but the gradient of `z`.

    Args:
        z: Input of the normalization.
        out: Activation, needed if there was a shortcut; None: computed from `z`.
        grad: Gradient of the quantized activation; overwritten.
        grad_out: Gradient of the activation itself; of the two gradients at least one is given.
        stats: Result of `statistics`.
        clip: Activation function.
        grid: Input quantizer, needed with `grad`.
        dtype: Dtype of the steps: float32, bfloat16 or uint8.
    """
    kernels, at = native.library(), native.address
    combine = grid.formula.sums if grid is not None else None
    if kernels is None or (grid is not None and combine is None):
        return _backward_sums_compiled(z, out, grad, grad_out, stats, clip, grid, dtype)
    folded, sums = z.new_empty(4, z.shape[1]), z.new_empty(3)
    steps = None if grid is None else scratch(z, dtype)
    target = grad if grad is not None else grad_out if clip.cap is None else torch.empty_like(z)
    assert target is not None
    constants = (*clip.arguments, *(NO_GRID if grid is None else grid.arguments))
    given = (at(z), at(out), at(grad), at(grad_out), at(steps), native.KINDS[dtype], at(target), at(stats))
    kernels.backward_sums(*given, *constants, *_size(z), at(folded), at(sums), _threads())
    parameters = () if grid is None or combine is None else combine(sums, *_constants(grid))
    return Sums(target, folded, steps, parameters)


def backward_input(z: Tensor, grad: Tensor, target: Tensor, stats: Tensor, rows: Tensor) -> Tensor:
    """Fill `target`, which may be `grad`, with the gradient of `z`, and return it."""
    kernels, at = native.library(), native.address
    if kernels is None:
        _rows(target).copy_(_compiled(_gradient_of_input)(_rows(z), _rows(grad), stats, rows))
    else:
        kernels.backward_input(at(z), at(grad), at(target), at(stats), at(rows), *_size(z), _threads())
    return target


class Window(NamedTuple):
    """Windows of a pooling: pairs of numbers for height and width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def output(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the pooled tensor."""
        sizes = zip(shape[2:], self.kernel, self.stride, self.padding, strict=True)
        return torch.Size([*shape[:2], *((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)])

    def arguments(self, shape: torch.Size) -> Any:
        """Return the argument of the C++ kernels for an input of that shape."""
        n, c, h, w = shape
        numbers = (n, h, w, c, *self.output(shape)[2:], *self.kernel, *self.stride, *self.padding)
        return (ctypes.c_int64 * len(numbers))(*numbers)


def max_pool(z: Tensor, stats: Tensor, clip: Clip, window: Window) -> tuple[Tensor, Tensor] | None:
    """Return the maximum of the activation in each window, and the place in the window that it comes from, uint8.

    None: there are no C++ kernels.
    """
    kernels, at = native.library(), native.address
    if kernels is None:
        return None
    shape = window.output(z.shape)
    out = torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=torch.channels_last)
    places = torch.empty_like(out, dtype=torch.uint8)
    given = (at(z), at(out), at(places), at(stats[3]), at(stats[4]))
    kernels.max_pool(*given, *clip.arguments, window.arguments(z.shape), _threads())
    return out, places


def max_pool_gradient(grad: Tensor, places: Tensor, shape: torch.Size, window: Window) -> Tensor:
    """Return the gradient of the activation, of that shape, from that of the result of `max_pool`."""
    target = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    at = native.address
    kernels = native.library()
    assert kernels is not None
    kernels.max_pool_gradient(at(grad), at(places), at(target), window.arguments(shape), _threads())
    return target


def _backward_sums_compiled(
    z: Tensor,
    out: Tensor | None,
    grad: Tensor | None,
    grad_out: Tensor | None,
    stats: Tensor,
    clip: Clip,
    grid: Grid | None,
    dtype: torch.dtype,
) -> Sums:
    given = (_rows(z), _rows(out), _rows(grad), _rows(grad_out), stats)
    if grid is None:
        total, rows = _compiled(_sums, clip)(*given)
        return Sums(image(total, z.shape), rows, None, ())
    function = _compiled(_sums_on_grid, clip, grid.formula)
    total, rows, codes, parameters = function(*given, grid.low, *_constants(grid))
    steps = codes if dtype is torch.uint8 else codes.to(dtype) + grid.low.to(dtype)
    return Sums(image(total, z.shape), rows, image(steps, z.shape), parameters)


# Functions of matrices (pixels, channels), for inductor.


def _statistics(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    near = z[:64].mean(0)
    d = z - near
    mean = d.sum(0, dtype=torch.float64) / z.shape[0]
    variance = ((d * d).sum(0, dtype=torch.float64) / z.shape[0] - mean * mean).clamp(min=0)
    inverse = torch.rsqrt(variance + eps)
    mean, a = mean + near, gamma * inverse
    return torch.stack([mean, variance, inverse, a, beta - mean * a]).float()


def _activation(z: Tensor, shortcut: Tensor | None, stats: Tensor, clip: Clip) -> Tensor:
    y = z * stats[3] + stats[4]
    return clip(y if shortcut is None else y + shortcut)


def _activation_codes(
    z: Tensor,
    shortcut: Tensor | None,
    stats: Tensor,
    low: Tensor,
    *parameters: Tensor,
    clip: Clip,
    formula: Elementwise,
) -> tuple[Tensor, Tensor, Tensor]:
    y = _activation(z, shortcut, stats, clip)
    return y, *formula.matrix_formulas[0](y, low, *parameters)


def _sums(
    z: Tensor, out: Tensor | None, grad: Tensor | None, grad_out: Tensor | None, stats: Tensor, clip: Clip
) -> tuple[Tensor, Tensor]:
    y = out if out is not None else z * stats[3] + stats[4]
    given = [g for g in (grad, grad_out) if g is not None]
    total = clip.gradient(given[0] if len(given) == 1 else given[0] + given[1], y)
    s1, s2 = total.sum(0), (total * (z - stats[0])).sum(0)
    c1, c2 = s1 / z.shape[0], s2 / z.shape[0] * stats[2] * stats[2]
    return total, torch.stack([s2 * stats[2], s1, c1, c2])


def _sums_on_grid(
    z: Tensor,
    out: Tensor | None,
    grad: Tensor,
    grad_out: Tensor | None,
    stats: Tensor,
    low: Tensor,
    *parameters: Tensor,
    clip: Clip,
    formula: Elementwise,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    y = out if out is not None else _activation(z, None, stats, clip)
    codes, _ = formula.matrix_formulas[0](y, low, *parameters)
    grad_y, *sums = formula.matrix_formulas[1](grad, y, *parameters)
    return *_sums(z, y, grad_y, grad_out, stats, clip), codes, tuple(sums)


def _gradient_of_input(z: Tensor, grad: Tensor, stats: Tensor, rows: Tensor) -> Tensor:
    return stats[3] * (grad - rows[2] - (z - stats[0]) * rows[3])


@functools.cache
def _specialized(function: Callable[..., Any], settings: tuple[Any, ...]) -> Callable[..., Any]:
    names = dict(zip(("clip", "formula"), settings))

    def special(*given: Any) -> Any:
        return function(*given, **names)

    special.__code__ = special.__code__.replace()  # torch.compile limits recompilations per code object
    return special


@functools.cache
def _inductor(function: Callable[..., Any], settings: tuple[Any, ...]) -> Callable[..., Any]:
    return selection.compiled(_specialized(function, settings))


def _compiled(function: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """Return a function of matrices for some settings, compiled if fused kernels are selected."""
    return (_inductor if selection.fused_now() else _specialized)(function, settings)


def _constants(grid: Grid) -> list[Tensor]:
    return [parameter.detach() for parameter in grid.parameters]


def rows(x: Tensor) -> Tensor:
    """Return the matrix (pixels, channels) with the memory of a channels_last tensor."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _rows(x: Tensor | None) -> Any:
    return None if x is None else rows(x)


def image(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return the channels_last tensor of a shape with the memory of a matrix (pixels, channels)."""
    n, c, h, w = shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def _size(z: Tensor) -> tuple[int, int]:
    return z.numel() // z.shape[1], z.shape[1]


def _threads() -> int:
    return torch.get_num_threads()
