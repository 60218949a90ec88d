"""Integer arithmetic for the forward pass of quantized layers on a CPU: 8-bit codes in, exact sums in int32.

A quantized layer multiplies values on two grids: `(codes + low) · scale` for its input and `integers · weight_scale`
for its weight. The product of the integers is exact, and with VNNI instructions several times as fast as the product of
the floats. oneDNN computes it: unsigned 8-bit codes with zero point `-low`, signed 8-bit weights, float32 results.

oneDNN is not exact in all that it accepts; `kernels.machine` says which products are.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


class Geometry(NamedTuple):
    """Arguments of a two-dimensional convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def convolve(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    low: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Convolve `(codes + low) · scale` with `weight · weight_scale`, exactly up to the final scaling.

    Args:
        codes: uint8, (N, C, H, W), any memory format; padded with `-low`, which stands for 0.
        weight: int8, (O, C / groups, h, w).
        scale: float, shape ().
        low: Value of code 0 in steps: an integer from -255 to 0 as a float, shape ().
        weight_scale: float32, shape () or (O,).
        bias: float32, (O,).
        stride: Two numbers, as the rest of the arguments those of `torch.nn.functional.conv2d`.

    Returns:
        float32, (N, O, H', W'), channels_last.
    """
    number, zero_point, geometry = float(scale), -int(low), (stride, padding, dilation, groups)
    scales = weight_scale.reshape(-1)  # one, or one for each channel, which oneDNN reads one by one
    packed = torch.ops.onednn.qconv_prepack(
        weight.contiguous(), scales, number, zero_point, *geometry, list(codes.shape)
    )
    codes = codes.contiguous(memory_format=torch.channels_last)
    zeros = torch.zeros(scales.shape, dtype=torch.long, device="cpu")
    y: Tensor = torch.ops.onednn.qconv2d_pointwise(
        codes, number, zero_point, packed, scales, zeros, bias, *geometry, *_TO_FLOAT32
    )
    return y.contiguous(memory_format=torch.channels_last)


integer_conv2d = torch.library.custom_op(
    "lbitcls::integer_conv2d",
    convolve,
    mutates_args=(),
    schema="(Tensor codes, Tensor weight, Tensor scale, Tensor low, Tensor weight_scale, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, int groups) -> Tensor",
)


@integer_conv2d.register_fake
def _(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    low: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(codes.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    shape = (codes.shape[0], weight.shape[0], *sizes)
    return torch.empty(shape, dtype=torch.float32, device=codes.device, memory_format=torch.channels_last)


def multiply_matrices(
    codes: Tensor, weight: Tensor, scale: Tensor, low: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """Multiply `(codes + low) · scale`, (N, C), by `weight · weight_scale`, (O, C); see `convolve`.

    Returns:
        float32, (N, O).
    """
    scales = weight_scale.expand(weight.shape[0]).contiguous()
    packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), list(codes.shape))
    zeros = torch.zeros(weight.shape[0], dtype=torch.long, device="cpu")
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes.contiguous(), float(scale), -int(low), packed, scales, zeros, bias, *_TO_FLOAT32
    )
    return y


integer_linear = torch.library.custom_op(
    "lbitcls::integer_linear",
    multiply_matrices,
    mutates_args=(),
    schema="(Tensor codes, Tensor weight, Tensor scale, Tensor low, Tensor weight_scale, Tensor? bias) -> Tensor",
)


@integer_linear.register_fake
def _(codes: Tensor, weight: Tensor, scale: Tensor, low: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty((codes.shape[0], weight.shape[0]), dtype=torch.float32, device=codes.device)


def is_direct() -> bool:
    """Return True if nothing watches operators, so that their functions may be called, which takes less time."""
    return not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack()


@register_flop_formula(torch.ops.lbitcls.integer_conv2d)
def _(codes: tuple[int, ...], weight: tuple[int, ...], *_: Any, out_shape: tuple[int, ...], **options: Any) -> int:
    return 2 * math.prod(weight[1:]) * math.prod(out_shape)


@register_flop_formula(torch.ops.lbitcls.integer_linear)
def _(codes: tuple[int, ...], weight: tuple[int, ...], *_: Any, out_shape: tuple[int, ...], **options: Any) -> int:
    return 2 * weight[1] * math.prod(out_shape)


_TO_FLOAT32: tuple[object, ...] = (1.0, 0, torch.float32, "none", [], "")  # scale, zero point, type, nothing after it
