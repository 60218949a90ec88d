"""Trial of the integer products that this machine computes exactly, and of their speed, once per process.

oneDNN's integer convolution is not exact in all that it accepts. Without VNNI instructions pairs of products saturate
silently. With AMX (PyTorch 2.15), kernels of 20 × 20 give wrong sums, so do grouped convolutions with a zero point, and
padding as large as the kernel makes it write outside of its memory. So a product runs in integers only if no such rule
forbids it, and if a small product of its kind, of integers near the largest, equals that of float64.
"""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lbitcls.quant.kernels.integer_operators import Geometry, integer_conv2d, integer_linear

LARGEST_CODE = 255
"""Largest unsigned 8-bit code."""
LARGEST_WEIGHT = 127
"""Largest magnitude of a signed 8-bit weight (-128 excepted)."""
LARGEST_KERNEL = 11
"""Largest side of a kernel whose sums have been seen to be exact everywhere."""
SATURATION = 2**15 - 1
"""Largest sum of two products that instructions older than VNNI hold; they silently saturate beyond it."""
LARGEST_SUM = 2**31 - 1
"""Largest sum that int32 holds."""
FAST_ENOUGH = 0.8
"""Largest time of a product in fewer bits, in that of the float32 one, at which it is chosen automatically."""


class Product(NamedTuple):
    """Product of integers: a kind that many layers may share."""

    weight_shape: tuple[int, ...]  # (O, C / groups, h, w), or (O, C) for a matrix product
    geometry: Geometry | None  # arguments of the convolution; None: matrix product
    largest_code: int
    largest_weight: int  # magnitude
    has_zero_point: bool  # code 0 may stand for another value than 0


def _with_values(function: Callable[..., bool]) -> Callable[..., bool]:
    """Decorate a trial to run on ordinary tensors, wherever it is called: in fake or counting modes, too."""

    @functools.wraps(function)
    def run(*arguments: Any) -> bool:
        with _disable_current_modes():
            return function(*arguments)

    return run


_largest_pair = SATURATION  # of this machine, once `find_obstacle` has been called


def find_obstacle() -> str:
    """Find out what this machine multiplies; return the reason why it multiplies not even 4-bit integers, or "".

    VNNI accumulates in int32. Older instructions add pairs of products in int16, and saturate silently.
    """
    global _largest_pair
    kind = Product((64, 64, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1), LARGEST_CODE, LARGEST_WEIGHT + 1, False)
    try:
        _largest_pair = 2 * LARGEST_CODE * (LARGEST_WEIGHT + 1) if _is_exact(kind) else SATURATION
        small = kind._replace(largest_code=15, largest_weight=8)
        exact = _is_exact(small) and _is_exact(small._replace(weight_shape=(64, 64), geometry=None))
    # oneDNN's products are private operators: a build may lack them, a version may change their arguments.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return "" if exact else "its 4-bit products are not exact"


def is_whole() -> bool:
    """Return True if products of 8 × 8 bits are exact, once `find_obstacle` has been called."""
    return _largest_pair > SATURATION


def is_exact(product: Product) -> bool:
    """Return True if this machine computes all products of a kind exactly."""
    return why_inexact(product) is None


def why_inexact(product: Product) -> str | None:
    """Return the reason why this machine's products of a kind may not be exact, or None if they are."""
    shape, geometry, code, weight, has_zero_point = product
    return _verdict(shape, None if geometry is None else tuple(geometry), code, weight, has_zero_point)


@torch._dynamo.assume_constant_result  # a traced model asks once, when it is traced; with plain tuples: others fail
def _verdict(shape: Any, geometry: Any, code: int, weight: int, has_zero_point: bool) -> str | None:
    return _verdict_once(shape, geometry, code, weight, has_zero_point, _largest_pair)


@functools.cache
def _verdict_once(
    shape: Any, geometry: Any, code: int, weight: int, has_zero_point: bool, largest_pair: int
) -> str | None:
    product = Product(shape, None if geometry is None else Geometry(*geometry), code, weight, has_zero_point)
    fan_in = math.prod(shape[1:])
    if fan_in * code * weight > LARGEST_SUM:
        return "its integer sums do not fit 32 bits"
    if 2 * code * weight > largest_pair:
        return "this machine's integer sums are not exact"
    if not is_served(product):
        return "oneDNN's integer kernel is not exact for its geometry"
    return None if _is_exact(product) else "this machine's integer sums are not exact"


def is_served(product: Product) -> bool:
    """Return True if no fault of oneDNN is known that concerns the product."""
    if product.geometry is None:
        return True
    _, padding, dilation, groups = product.geometry
    out, channels, *kernel = product.weight_shape
    grouped = groups > 1 and not (channels == 1 and out == groups)  # depthwise is no group of several channels
    inside = all(p <= d * (k - 1) for p, d, k in zip(padding, dilation, kernel, strict=True))
    return inside and max(kernel) <= LARGEST_KERNEL and not (grouped and product.has_zero_point)


@_with_values
def _is_exact(product: Product) -> bool:
    """Return True if a product of random integers near the largest ones equals that of float64."""
    with torch.no_grad():
        codes, weight = _sample(product)
        low = -(product.largest_code // 2) if product.has_zero_point else 0
        shifted = codes.double() + low
        if product.geometry is None:
            expected = F.linear(shifted, weight.double())
        else:
            expected = F.conv2d(shifted, weight.double(), None, *product.geometry)
        return torch.equal(_multiply(product, codes, weight, low), expected.float())


def _sample(product: Product) -> tuple[Tensor, Tensor]:
    """Return codes of a small input, and weights, all near their largest values."""
    generator = torch.Generator().manual_seed(0)
    channels, *kernel = product.weight_shape[1:]
    shape: tuple[int, ...] = (5, channels)
    if product.geometry is not None:
        reach = [d * (k - 1) + 1 for d, k in zip(product.geometry.dilation, kernel, strict=True)]
        shape = (2, channels * product.geometry.groups, *(r + 7 for r in reach))
    highest, largest = product.largest_code + 1, product.largest_weight
    codes = torch.randint(max(0, highest - 3), highest, shape, generator=generator, device="cpu").to(torch.uint8)
    weight = -torch.randint(max(1, largest - 2), largest + 1, product.weight_shape, generator=generator, device="cpu")
    return codes, weight.to(torch.int8)


def _multiply(product: Product, codes: Tensor, weight: Tensor, low: int) -> Tensor:
    one, lowest = torch.tensor([1.0, low], dtype=torch.float32, device="cpu")
    if product.geometry is None:
        return integer_linear(codes, weight, one, lowest, one, None)
    stride, padding, dilation, groups = product.geometry
    return integer_conv2d(codes, weight, one, lowest, one, None, list(stride), list(padding), list(dilation), groups)


@functools.cache
@_with_values
def integers_are_fast() -> bool:
    """Return True if integer convolutions are clearly faster than float32 ones on this machine."""
    kind = Product((64, 64, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1), 15, 8, False)
    codes, weight = _sample(kind)
    codes = codes.repeat(4, 1, 2, 2).contiguous(memory_format=torch.channels_last)
    x, w = codes.float(), weight.float()
    slow = _seconds(lambda: F.conv2d(x, w, padding=1))
    return _seconds(lambda: _multiply(kind, codes, weight, 0)) < FAST_ENOUGH * slow


@torch._dynamo.assume_constant_result  # of a plain function: it looks into a cached one
def bf16_is_fast() -> bool:
    """Return True if bfloat16 convolutions are clearly faster than float32 ones on this machine."""
    return _bf16_is_fast_once()


@functools.cache
@_with_values
def _bf16_is_fast_once() -> bool:
    kind: Any = dict(dtype=torch.float32, device="cpu")
    x = torch.ones(8, 64, 20, 20, **kind).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3, **kind)
    half, weight_half = x.bfloat16(), weight.bfloat16()
    slow = _seconds(lambda: F.conv2d(x, weight, padding=1))
    return _seconds(lambda: F.conv2d(half, weight_half, padding=1)) < FAST_ENOUGH * slow


@torch._dynamo.assume_constant_result
def matrix_products_are_fast() -> bool:
    """Return True if PyTorch's matrix products are faster than its convolutions with kernels of 1 × 1.

    They are on Intel's processors, whose library MKL multiplies float32 matrices. On a Zen 4 they take 1.2 times the
    time. Not a trial: gradients would differ in the last bits from run to run.
    """
    return _is_intel()


@functools.cache
def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return "Intel" in platform.processor()


def _seconds(function: Callable[[], Tensor], repeats: int = 5) -> float:
    def once() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    with torch.no_grad():
        return min(once() for _ in range(repeats))
