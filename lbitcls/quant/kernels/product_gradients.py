"""Gradients of a product of integers by its two factors, in float32, bfloat16 or int8.

The product is `y = x̂ * ŵ`, a convolution or a matrix product of `x̂ = steps · scale` and `ŵ = integers · column`, with
one column of scales for all weights or one for each output channel. Its gradients are two products more:

    ∂L/∂x̂ = transposed(∂L/∂y, ŵ)        ∂L/∂ŵ = correlation(∂L/∂y, x̂)

`float32` multiplies floats. `bf16` and `int8` round only ∂L/∂y · column, to bfloat16 or to 8 bits: steps and integers
have at most 8 bits, which bfloat16 holds. int8 rounds stochastically (Gupta et al., arXiv:1502.02551, section 3), up
with the probability of the remainder, so that the rounding has no bias; rounding to the nearest stops small gradients.
Its input gradient is an integer product where the convolution has stride 1; the other products run in bfloat16 on the
same 8-bit numbers, or in float32 where the machine has no fast bfloat16. A grouped convolution keeps float32: it has
too few products for its rounding to pay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lbitcls.quant.kernels import selection
from lbitcls.quant.kernels.integer_operators import Geometry, integer_conv2d, integer_linear
from lbitcls.quant.kernels.machine import (
    LARGEST_CODE,
    LARGEST_WEIGHT,
    Product,
    bf16_is_fast,
    is_exact,
    matrix_products_are_fast,
)

LARGEST_GRADIENT = 127
"""Largest magnitude of a gradient of 8 bits."""
CENTER = 128
"""Unsigned 8-bit code of a gradient of 0."""


class ProductGradients:
    """Gradients of a product, from that of its result.

    Args:
        grad: Gradient of the result: float32, (N, O, H', W'), or (N, O) for a matrix product.
        integers: Weight in its steps: int8, (O, C / groups, h, w) or (O, C).
        column: Scales of the weight, which broadcast against it.
        geometry: Arguments of the convolution; None: matrix product.
        gradients: Type in which the products run: `float32`, `bf16` or `int8`.

    Attributes:
        operand: Floating-point type of the tensors that `weight` takes.
    """

    def __init__(
        self, grad: Tensor, integers: Tensor, column: Tensor, geometry: Geometry | None, gradients: str
    ) -> None:
        self._geometry, self._integers, self._column = geometry, integers, column
        whole = geometry is None or geometry.groups == 1
        self._kind = gradients if whole else "float32"
        half = self._kind == "bf16" or (self._kind == "int8" and bf16_is_fast())
        self.operand = torch.bfloat16 if half else torch.float32
        self._unit: Tensor | None = None  # value of one step of a gradient in 8 bits
        self._grad = grad if self._kind == "float32" else self._rounded(grad)

    def _rounded(self, grad: Tensor) -> Tensor:
        """Return ∂L/∂y · column in fewer bits."""
        if grad.dim() == 4:
            grad = grad.contiguous(memory_format=torch.channels_last)
        rows = grad.movedim(1, -1)
        matrix, column = _rows(grad), self._column.reshape(-1)  # one compilation serves every layer
        if self._kind == "bf16":
            rounded = _in_half(matrix, column)
        else:
            seed = torch.randint(2**31, (), device=grad.device)
            rounded, self._unit = _rounded_stochastically(matrix, column, seed)
        return rounded.view(rows.shape).movedim(-1, 1)

    def _in_steps(self) -> Tensor:
        """Return the rounded gradient as `operand`; one of 8 bits as its codes."""
        if self._unit is None:
            return self._grad
        rows = self._grad.movedim(1, -1)
        return _centered(rows.reshape(-1), self.operand).view(rows.shape).movedim(-1, 1)

    def input(self, shape: torch.Size) -> Tensor:
        """Return the gradient of the input, float32, of that shape, channels_last if it has four axes."""
        if self._kind == "float32":
            return self._products(self._grad, None, self._integers * self._column, shape)
        if self._unit is not None and _has_integer_gradient(self._geometry, self._integers):
            return _integer_input_gradient(self._grad, self._unit, self._integers, self._geometry)
        grad = self._products(self._in_steps(), None, self._integers.to(self.operand), shape).float()
        return grad if self._unit is None else grad * self._unit

    def weight(self, operand: Tensor) -> Tensor:
        """Return Σ ∂L/∂y · operand, as in the gradient of the weight, float32.

        Args:
            operand: Tensor like the product's input, of type `operand`; its channels may be more than the product's.
        """
        grad = self._products(self._in_steps(), operand, None, operand.shape).float()
        if self._kind == "float32":
            return grad
        return grad / self._column if self._unit is None else grad * (self._unit / self._column)

    def both(
        self, steps: Tensor, scale: Tensor, of_input: bool, of_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of the input and of the weight, those asked for, or None.

        Args:
            steps: The product's input in its steps, of type `operand`.
            scale: Its scale, shape ().
        """
        if torch.compiler.is_compiling() and self._kind == "float32" and self._geometry is not None:
            # Values, not steps: the compiler would keep steps, which the forward pass computes, too. One operation, so
            # that it reads them in one order of memory.
            weight, mask = self._integers * self._column, [of_input, of_weight, False]
            grad_input, grad_weight, _ = self._convolution_backward(self._grad, steps * scale, weight, mask)
            return grad_input, grad_weight
        grad_weight = self.weight(steps) * scale if of_weight else None
        return self.input(steps.shape) if of_input else None, grad_weight

    def _convolution_backward(self, grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> Any:
        assert self._geometry is not None
        stride, padding, dilation, groups = self._geometry
        arguments = (list(stride), list(padding), list(dilation), False, [0, 0], groups)
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *arguments, mask)

    def _products(self, grad: Tensor, x: Any, weight: Tensor | None, shape: torch.Size) -> Tensor:
        """Return the gradient of the input, of that shape, if `weight` is given, else that of the weight."""
        geometry, of_input = self._geometry, weight is not None
        if geometry is None:
            return grad @ weight if weight is not None else grad.t() @ x
        if _is_matrix_product(geometry, self._integers) and matrix_products_are_fast():
            rows = _rows(grad)
            if weight is None:
                return (rows.t() @ _rows(x)).view(self._integers.shape[0], shape[1], 1, 1)
            return (rows @ weight.flatten(1)).view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        if weight is None:
            out, _, *kernel = self._integers.shape
            weight = _unfilled((out, shape[1] // geometry.groups, *kernel), grad)
        weight = weight.contiguous(memory_format=torch.channels_last)
        x, mask = _unfilled(shape, grad) if x is None else x, [of_input, not of_input, False]
        gradients = self._convolution_backward(grad, x, weight, mask)
        return gradients[0].contiguous(memory_format=torch.channels_last) if of_input else gradients[1]


def _is_matrix_product(geometry: Geometry, integers: Tensor) -> bool:
    """Return True if a convolution multiplies each pixel by one matrix."""
    plain = set(geometry.stride) == {1} and set(geometry.padding) == {0} and geometry.groups == 1
    return plain and set(integers.shape[2:]) == {1}


def _rows(x: Tensor) -> Tensor:
    """Return (N, C, H, W) as a matrix (pixels, channels): a view of a channels_last tensor."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _unfilled(shape: Any, like: Tensor) -> Tensor:
    """Return a tensor of which only the shape, type and memory format matter."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


@selection.fusible
def _in_half(rows: Tensor, column: Tensor) -> Tensor:
    return (rows * column).to(torch.bfloat16)


@selection.fusible
def _rounded_stochastically(rows: Tensor, column: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Return `rows · column` as uint8 codes around `CENTER`, and the step, shape (); the largest magnitude has 127.

    Each element's random number is a hash of its index and `seed`; a generator's numbers would cost more than the
    products.
    """
    unit = (rows * column).abs().amax() / LARGEST_GRADIENT
    unit = torch.where(unit == 0, 1.0, unit)
    index = torch.arange(rows.numel(), device=rows.device).view(rows.shape)
    mixed = (index * 0x9E3779B1 + seed) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    noise = (mixed >> 8).to(torch.float32) * 2.0**-24  # in [0, 1)
    steps = torch.floor(rows * column / unit + noise)
    return (steps.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT) + CENTER).to(torch.uint8), unit


@selection.fusible
def _centered(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradients in steps."""
    return codes.to(dtype) - CENTER


def _has_integer_gradient(geometry: Geometry | None, integers: Tensor) -> bool:
    """Return True if the input gradient is a product of integers that is exact: of a convolution with stride 1."""
    shape = tuple(integers.shape)
    if geometry is None:
        return is_exact(Product((shape[1], shape[0]), None, LARGEST_CODE, LARGEST_WEIGHT + 1, True))
    if set(geometry.stride) != {1} or any(
        p > r for p, r in zip(geometry.padding, _reach(geometry, shape), strict=True)
    ):
        return False
    turned = (shape[1], shape[0], *shape[2:])
    return is_exact(Product(turned, _turned(geometry, shape), LARGEST_CODE, LARGEST_WEIGHT + 1, True))


def _reach(geometry: Geometry, shape: tuple[int, ...]) -> list[int]:
    return [d * (k - 1) for d, k in zip(geometry.dilation, shape[2:], strict=True)]


def _turned(geometry: Geometry, shape: tuple[int, ...]) -> Geometry:
    """Return the geometry of the convolution that is the input gradient of one with stride 1."""
    padding = tuple(r - p for r, p in zip(_reach(geometry, shape), geometry.padding, strict=True))
    return Geometry((1, 1), padding, geometry.dilation, 1)


def _integer_input_gradient(codes: Tensor, unit: Tensor, integers: Tensor, geometry: Geometry | None) -> Tensor:
    """Return the input gradient as an integer product: of the gradient's codes and the weight turned round."""
    one, low = torch.tensor([1.0, -CENTER], dtype=torch.float32, device=codes.device)
    if geometry is None:
        return integer_linear(codes, integers.t().contiguous(), unit, low, one, None)
    turned = integers.flip(2, 3).transpose(0, 1).contiguous()
    stride, padding, dilation, groups = _turned(geometry, tuple(integers.shape))
    return integer_conv2d(codes, turned, unit, low, one, None, list(stride), list(padding), list(dilation), groups)
