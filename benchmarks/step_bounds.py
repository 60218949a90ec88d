"""Lower bounds for the time of a training step that qat_step.py measures: what no kernel around the products avoids."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from steps import build, median_seconds
from torch import Tensor, nn

from lbitcls.quant.kernels.integer_operators import integer_conv2d
from lbitcls.quant.layers import QuantLayer

LAYOUTS = (torch.channels_last, torch.contiguous_format)


class Convolution(NamedTuple):
    """Shapes of one convolution and its input, and True if the input needs a gradient (not that of a first layer)."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    needs_input_grad: bool


def pass_seconds(args: argparse.Namespace, method: str) -> float:
    """Return the time to read two arrays and write one, each as large as each quantized layer's input.

    A backward pass of quantizers that is not fused with other operations (reads the gradient and x, writes a gradient)
    takes at least as long, whatever it computes.
    """
    sizes: list[int] = []
    model, images, _ = build(args, method)
    for layer in model.modules():
        if isinstance(layer, QuantLayer):
            layer.register_forward_pre_hook(lambda m, inputs: sizes.append(inputs[0].numel()))
    with torch.no_grad():
        model.predict(images)
    a, b, c = (x.split(sizes) for x in torch.ones(3, sum(sizes), device=args.device))

    def step() -> None:
        for x, y, out in zip(a, b, c, strict=True):
            torch.add(x, y, out=out)

    return median_seconds(step, args)


def product_seconds(args: argparse.Namespace, gradients: str) -> float:
    """Return the time of a model's convolutions alone: forward on integers, backward on floats.

    Args:
        args: Options of the command: model, batch size, threads and repeats.
        gradients: `float32`, or `bf16`: each layer's backward pass in the faster of both.
    """
    types = (torch.float32,) if gradients == "float32" else (torch.float32, torch.bfloat16)
    total = 0.0
    for shape, number in Counter(_convolutions(args)).items():
        backward = (_backward(shape, dtype, layout) for dtype in types for layout in LAYOUTS)
        fastest = min(median_seconds(function, args) for function in backward)
        total += number * (median_seconds(_forward(shape), args) + fastest)
    return total


def _convolutions(args: argparse.Namespace) -> list[Convolution]:
    """Return the convolutions of the float model, in the order in which they run."""
    found: list[Convolution] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str)
        shapes = tuple(inputs[0].shape), tuple(layer.weight.shape)
        place = layer.stride, layer.padding, layer.dilation, layer.groups
        found.append(Convolution(*shapes, *place, inputs[0].requires_grad))

    model, images, _ = build(args, None)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(note)
    model.predict(images)
    return found


def _forward(shape: Convolution) -> Callable[[], object]:
    codes = torch.randint(0, 16, shape.input, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-8, 8, shape.weight, dtype=torch.int8)
    one, zero = torch.ones(()), torch.zeros(())
    place = list(shape.stride), list(shape.padding), list(shape.dilation), shape.groups
    return lambda: integer_conv2d(codes, weight, one, zero, one, None, *place)


def _backward(shape: Convolution, dtype: torch.dtype, layout: torch.memory_format) -> Callable[[], object]:
    x, weight = (torch.randn(size).to(dtype, memory_format=layout) for size in (shape.input, shape.weight))
    place = list(shape.stride), list(shape.padding), list(shape.dilation)
    grad = torch.nn.functional.conv2d(x, weight, None, *place, shape.groups)
    mask = [shape.needs_input_grad, True, False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(grad, x, weight, None, *place, False, [0, 0], shape.groups, mask)
