"""Training steps with integer kernels beside the float32 and the float64 simulation."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant.kernels import integer_step, selection
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.methods import build_quant_layer


class Step(NamedTuple):
    """Output, gradients and buffers of a training step, in float64."""

    output: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    products: int  # number of products in integers


def quantized(layer: nn.Module, x: Tensor, kind: str, method: str = "LSQ", **options: Any) -> QuantLayer:
    """The quantized layer in training, with initial values from other data than `x`."""
    made: QuantLayer = build_quant_layer(dict(type=f"{method}{kind}", num_bit_w=4, num_bit_a=4, **options), layer)
    made.train()
    with torch.no_grad():
        made(x * 0.9)
    return made


def step(model: nn.Module, x: Tensor, kind: str, image: bool = False) -> Step:
    """A step of `model` with one kind of kernels; of an image, the input's gradient is left out."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(not image and x.is_floating_point())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_active", kind)
        patch.setattr(selection, "fused_now", lambda: False)
        called = _counting(patch)
        y = model(x)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    gradients |= {} if x.grad is None else {"input": x.grad.double()}
    buffers = {name: b.double() for name, b in model.named_buffers()}
    return Step(y.detach().double(), gradients, buffers, len(called))


def _counting(patch: pytest.MonkeyPatch) -> list[int]:
    called: list[int] = []
    product = integer_step.integer_product

    def counted(*arguments: Any) -> Tensor:
        called.append(1)
        return product(*arguments)

    patch.setattr(integer_step, "integer_product", counted)
    return called


def distance(one: Tensor, other: Tensor) -> float:
    """The norm of the difference, relative to `other`."""
    return float((one - other).norm() / other.norm().clamp_min(1e-9)) if one.numel() else 0.0


def check_step(model: nn.Module, x: Tensor, products: int = 1, image: bool = False) -> None:
    """Compare a step in integers with the simulation; `products`: number of products that integers must carry."""
    exact = step(copy.deepcopy(model).double(), x.double(), "plain", image)
    simulated, got = (step(copy.deepcopy(model), x, kind, image) for kind in ("plain", "integer"))
    assert (simulated.products, got.products) == (0, products)
    assert got.output.shape == simulated.output.shape
    assert distance(got.output, exact.output) <= max(1e-6, 1.01 * distance(simulated.output, exact.output))
    assert got.gradients.keys() == simulated.gradients.keys()
    for name, expected in exact.gradients.items():
        smallest = 1e-3 if "quantizer" in name else 2e-5  # a scale's gradient is a sum that nearly cancels
        bound = max(smallest, 3 * distance(simulated.gradients[name], expected))
        assert distance(got.gradients[name], expected) <= bound, name
    for name, value in simulated.buffers.items():
        assert distance(got.buffers[name], value) < 1e-6, name
